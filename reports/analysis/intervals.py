"""Confidence intervals of samples."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# How far two runs differ: the standard deviation of the logarithm of a loss's time over builtin's
# time. On a CPU neighbours take memory bandwidth in some minutes, and this does not slow all losses
# equally (docs/experiments/0036-what-two-runs-share.md). On a GPU 0.3 % was the most between
# processes (docs/experiments/0031-compare-on-h200.md).
BETWEEN_RUNS = {"cpu": 0.06, "cuda": 0.005}
LEAST = 6  # samples; with fewer no interval of a median reaches 95 %


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median of ``samples``, and the ends of its 95 % confidence interval, in the samples' unit.

    The ends are order statistics. The interval is exact for any continuous distribution
    (``scipy.stats.quantile_test``). With fewer than six samples no interval reaches 95 %, and the
    result is the range of the samples.
    """
    ordered = sorted(samples)
    low, high = _ranks(len(ordered))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


def half_width(ratios: Sequence[float], device: str) -> float:
    """Half of the 95 % interval of the median of ``ratios``, for any run on this machine.

    ``ratios`` has the ratio of each round of one run. ``device`` is "cpu" or "cuda". The interval
    adds two independent errors: the scatter of the rounds, and ``BETWEEN_RUNS``. The result is nan
    if there are too few ratios, or if the interval of their median reaches 0.
    """
    middle, low, high = median_interval(ratios)
    if len(ratios) < LEAST or low <= 0:
        return math.nan
    return middle * math.hypot(math.log(high / low) / 2, 1.96 * BETWEEN_RUNS[device])


@functools.cache
def _ranks(n: int) -> tuple[int, int]:
    """The positions of both ends in ``n`` sorted samples. They do not depend on the samples."""
    interval = stats.quantile_test(range(n), q=0, p=0.5).confidence_interval(0.95)
    low = interval.low if np.isfinite(interval.low) else 0
    high = interval.high if np.isfinite(interval.high) else n - 1
    return int(low), int(high)
