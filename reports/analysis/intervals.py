"""Confidence intervals of samples."""

import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median of ``samples``, and the ends of its 95 % confidence interval, in the samples' unit.

    The ends are order statistics. The interval is exact for any continuous distribution
    (``scipy.stats.quantile_test``). With fewer than six samples no interval reaches 95 %, and the
    result is the range of the samples.
    """
    ordered = sorted(samples)
    low, high = _ranks(len(ordered))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


@functools.cache
def _ranks(n: int) -> tuple[int, int]:
    """The positions of both ends in ``n`` sorted samples. They do not depend on the samples."""
    interval = stats.quantile_test(range(n), q=0, p=0.5).confidence_interval(0.95)
    low = interval.low if np.isfinite(interval.low) else 0
    high = interval.high if np.isfinite(interval.high) else n - 1
    return int(low), int(high)
