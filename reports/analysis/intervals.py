"""Confidence intervals of samples."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# The standard deviation, between runs, of the log-ratio of a loss's time to builtin's. Neighbours
# take memory bandwidth in some minutes, which does not slow all losses equally
# (docs/experiments/0036-what-two-runs-share.md; 0031 for a GPU).
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

    ``ratios`` are those of one run, round by round, on a ``device`` of that kind. The scatter of
    its rounds and ``BETWEEN_RUNS`` are added as independent errors. The result is nan where there
    are too few ratios, or where a time is 0.
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
