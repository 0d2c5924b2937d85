"""Which times of a run did not pass its checks.

A shared machine changes its speed from round to round. So a time is divided by the round's speed.
This is the median of the other implementations' times, each divided by its own median. A time is
noisy in three cases:

- The 95 % interval of its median ratio is wider than ``SCATTER`` of the ratio, on either side.
- Its median ratio in the first half of the rounds differs from that in the second half by more than
  ``DRIFT``, and by more than three standard errors.
- Its forward takes longer than its forward and backward together.

The reference's own times are not divided. They are checked for scatter and drift in the same way,
with ``REFERENCE_SCATTER``. The speed is not the reference's alone: a neighbour that takes memory
bandwidth slows a copy down more than it slows a loss.
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
        others = [
            np.asarray(other) / np.median(other)
            for (name, of), other in samples.items()
            if name != impl and of == metric and len(other) == len(times)
        ]
        alone = impl == reference or not others
        ratios = times if alone else times / np.median(others, axis=0)
        if not is_steady(ratios, REFERENCE_SCATTER if alone else SCATTER):
            noisy.add((impl, metric))
    for impl in {impl for impl, _ in samples}:
        forward, both = (samples.get((impl, name), ()) for name in ("forward", "forward_backward"))
        rounds = min(len(forward), len(both))  # a pass that was noisy has more
        if rounds:
            ratios = np.divide(forward[:rounds], both[:rounds])
            if np.median(ratios) - 2 * standard_error(ratios) > 1:
                noisy |= {(impl, "forward"), (impl, "forward_backward")}
    return noisy


def is_steady(values: np.ndarray, scatter: float) -> bool:
    """Whether the median of ``values`` is known to ``scatter``, and does not drift."""
    if len(values) < 2:
        return False
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
