"""Which times of a run did not pass its checks.

All times are checked as ratios to the reference's within rounds, as a shared machine changes its
speed from round to round. A time is noisy in three cases:

- The 95 % interval of its median ratio is wider than ``SCATTER`` of the ratio, on either side.
- Its median ratio in the first half of the rounds differs from that in the second half by more than
  ``DRIFT``, and by more than three standard errors.
- Its forward takes longer than its forward and backward together.

The reference's own times are checked for scatter and drift too, with ``REFERENCE_SCATTER``.
"""

from collections.abc import Mapping, Sequence

import numpy as np

SCATTER = 0.10
REFERENCE_SCATTER = 0.25  # of the time itself, which has the machine's changes of speed in it
DRIFT = 0.15

Samples = Mapping[tuple[str, str], Sequence[float]]  # by implementation and metric, by round


def noisy_times(samples: Samples, reference: str) -> set[tuple[str, str]]:
    """The (implementation, metric) pairs that fail a check."""
    noisy = set()
    for impl, metric in samples:
        times = np.asarray(samples[impl, metric])
        base = np.asarray(samples.get((reference, metric), ()))
        is_reference = impl == reference or len(base) != len(times)
        ratios = times if is_reference else times / base
        if not is_steady(ratios, REFERENCE_SCATTER if is_reference else SCATTER):
            noisy.add((impl, metric))
    for impl in {impl for impl, _ in samples}:
        forward, both = (samples.get((impl, name), ()) for name in ("forward", "forward_backward"))
        if len(forward) and len(forward) == len(both):
            ratios = np.divide(forward, both)
            if np.median(ratios) - 2 * standard_error(ratios) > 1:
                noisy |= {(impl, "forward"), (impl, "forward_backward")}
    return noisy


def is_steady(values: np.ndarray, scatter: float) -> bool:
    """Whether the median of ``values`` is known to ``scatter``, and does not drift."""
    halves = np.array_split(values, 2)
    first, second = (np.median(half) for half in halves)
    moved = abs(second / first - 1)
    first_error, second_error = (standard_error(half) for half in halves)
    error = np.hypot(first_error, second_error) / first
    is_known = 2 * standard_error(values) <= scatter * np.median(values)
    return bool(is_known and moved <= max(DRIFT, 3 * error))


def standard_error(values: np.ndarray) -> float:
    """That of the median, from the median absolute deviation, as a few values are disturbed."""
    deviation = 1.4826 * np.median(abs(values - np.median(values)))
    return float(1.2533 * deviation / len(values) ** 0.5)
