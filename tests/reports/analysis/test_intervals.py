"""The interval of a median."""

import numpy as np

from reports.analysis.intervals import median_interval


def test_median_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        _, low, high = median_interval(generator.lognormal(size=15))
        covered += low <= 1.0 <= high
    assert 930 <= covered <= 990


def test_median_interval_of_few_samples_is_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
