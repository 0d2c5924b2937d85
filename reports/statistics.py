"""Intervals for what was sampled."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median of ``samples``, and the ends of its 95 % confidence interval, in the samples' unit.

    The interval is of order statistics, exact for any continuous distribution
    (``scipy.stats.quantile_test``). With fewer than six samples there is none that sure: the range
    stands for it.
    """
    interval = stats.quantile_test(samples, q=0, p=0.5).confidence_interval(0.95)
    low = interval.low if np.isfinite(interval.low) else min(samples)
    high = interval.high if np.isfinite(interval.high) else max(samples)
    return float(np.median(samples)), float(low), float(high)
