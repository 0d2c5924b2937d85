"""The intervals of a median and of a ratio."""

import math

import numpy as np

from reports.analysis.intervals import BETWEEN_RUNS, half_width, median_interval


def test_median_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        _, low, high = median_interval(generator.lognormal(size=15))
        covered += low <= 1.0 <= high
    assert 930 <= covered <= 990


def test_median_interval_of_few_samples_is_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_the_ratios_of_two_runs_agree_as_often_as_their_half_widths_say() -> None:
    generator = np.random.default_rng(0)

    def run() -> tuple[float, float]:
        of_run = 2 * generator.lognormal(0, BETWEEN_RUNS["cpu"])
        rounds = of_run * generator.lognormal(0, 0.1, 15)
        return float(np.median(rounds)), half_width(rounds, "cpu")

    agree = 0
    for _ in range(1000):
        (one, of_one), (other, of_other) = run(), run()
        agree += abs(one - other) <= np.hypot(of_one, of_other)
    assert 930 <= agree <= 980


def test_a_ratio_of_few_rounds_or_of_a_time_of_0_has_no_half_width() -> None:
    assert math.isnan(half_width([2.0] * 5, "cpu"))
    assert math.isnan(half_width([*[0.0] * 3, *[2.0] * 5], "cpu"))
    assert half_width([2.0] * 6, "cuda") < half_width([2.0] * 6, "cpu")
