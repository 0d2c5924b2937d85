"""Where a series steps or drifts, and by how much.

Times are cut by the method of asv's ``step_detect``, with three differences (see ``segments``).
Bytes and counts have no noise: each new value is a step. Small steps in the same direction that
follow each other add up. A straight line that explains the numbers better than steps is a drift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from asv.step_detect import get_mu_dist, solve_potts_approx
from scipy import stats

SEGMENT = 2  # commits at least on either side of a step in time: one alone proves nothing
NOISE = 3.0  # times the scatter that a step must rise
PENALTY = 2.5  # times ln(n)/n, for each part of a series of n times
DRIFT = 10  # commits at least of a drift
SURE = 1e-3  # the p-value below which a drift is no chance
MEMORY_UNITS = ("bytes", "MB")


@dataclass(frozen=True)
class Span:
    """A step or a drift."""

    commit: str  # the first of the new values
    last: str  # the commit before it
    before: pd.Series  # values at one end of the change, and at the other
    after: pd.Series
    ends: tuple[float, float]  # the value before and after, as they are shown
    later: list[pd.Series]  # the parts of the series after the change


def mode_of(of: pd.Series, numbers: dict[str, pd.Series]) -> str:
    """How values are compared: "exact" and "amount" by difference, "ratio" by logarithm.

    Bytes and counts are "exact", but not where several devices share the work ("×" in the
    device): ranks on a CPU keep small messages for a moment, so their bytes differ from run to run.
    """
    if of["unit"] in ("bytes", "count") and "×" not in str(of["device"]):
        return "exact"
    has_zero = any((one == 0).any() for one in numbers.values())
    return "amount" if of["unit"] in MEMORY_UNITS or has_zero else "ratio"


def least_change(before: float, margin: float, mode: str) -> float:
    """The least change from ``before`` that counts."""
    if mode == "exact":
        return 0.0
    return margin * abs(before) if mode == "amount" else float(np.log1p(margin))


def cut(values: pd.Series, margin: float, mode: str) -> list[pd.Series]:
    """A series cut where it steps. A series within the margin is not cut."""
    if mode == "exact":
        return [part for _, part in values.groupby((values != values.shift()).cumsum())]
    if values.max() - values.min() <= least_change(values.iloc[0], margin, mode):
        return [values]
    ends = segments(list(values))
    return [values.iloc[left:right] for left, right in pairwise([0, *ends])]


def segments(values: list[float]) -> list[int]:
    """The ends of the parts of a series: a constant in each part, as few parts as explain it.

    They minimise log(Σ|value − constant|) + PENALTY ln(n)/n · parts. asv's ``detect_steps``
    differs in three ways:

    - Its penalty is 4. Five commits of 25 that are 30 % higher, at a scatter of 7 %, are then found
      in none of 50 simulated series.
    - A part may have one commit.
    - It first removes the correlation of successive values. A series that is higher for some
      commits, and then back, looks like such a correlation.

    docs/experiments/0032-steps-in-a-short-history.md has the rates.
    """
    count = len(values)
    weights = [1.0] * count
    parts = get_mu_dist(values, weights)
    whole = parts.dist(0, count - 1)
    best, found = np.inf, [count]
    for share in np.geomspace(1e-3, 2, 30):  # of the whole's distance, that a part must save
        ends, _, distances = solve_potts_approx(
            values, weights, share * whole, min_size=SEGMENT, mu_dist=parts
        )
        cost = np.log(sum(distances) + 1e-3 * whole) + PENALTY * np.log(count) / count * len(ends)
        if cost < best:
            best, found = cost, ends
    return found


def noise_of(values: pd.Series, parts: list[pd.Series]) -> float:
    """The scatter of a series about its steps or about a line: the smaller.

    Each part costs two degrees of freedom, its place and its size. With few left the scatter is
    larger, so that ``NOISE`` times it is as rare as for Student's distribution.
    """
    count = len(values)
    freedom = max(count - 2 * len(parts), 1)
    rare = stats.t.isf(stats.norm.sf(NOISE), freedom) / NOISE
    around = [rare * np.concatenate([part - part.median() for part in parts])]
    if count >= DRIFT:
        around.append(off_the_line(values)[1])
    return float(min(stats.median_abs_deviation(one, scale="normal") for one in around))


def off_the_line(values: pd.Series) -> tuple[tuple[float, float], np.ndarray]:
    """The ends of a line through a series (Theil and Sen), and the distances from the line."""
    x = np.arange(len(values))
    slope, intercept, *_ = stats.theilslopes(values.to_numpy(), x)
    line = intercept + slope * x
    return (float(line[0]), float(line[-1])), values.to_numpy() - line


def steps(parts: list[pd.Series], margin: float, floor: float, mode: str) -> Iterator[Span]:
    """Each step; small steps that follow each other in the same direction are one."""
    medians = [float(part.median()) for part in parts]
    shifts = np.diff(medians)
    least = [least_change(before, margin, mode) for before in medians]
    shortest = 1 if mode == "exact" else SEGMENT
    long = [len(part) >= shortest for part in parts]
    real = [abs(shift) > floor and long[n] and long[n + 1] for n, shift in enumerate(shifts)]
    n = 0
    while n < len(shifts):
        start, n = n, n + 1
        if not real[start]:
            continue
        if abs(shifts[start]) <= least[start]:
            while (
                n < len(shifts)
                and real[n]
                and shifts[n] * shifts[start] > 0
                and abs(shifts[n]) <= least[n]
            ):
                n += 1
        if abs(medians[n] - medians[start]) > max(least[start], floor):
            yield Span(
                commit=str(parts[start + 1].index[0]),
                last=str(parts[start].index[-1]),
                before=parts[start],
                after=parts[n],
                ends=(medians[start], medians[n]),
                later=parts[n + 1 :],
            )


def drift_of(
    values: pd.Series, parts: list[pd.Series], margin: float, floor: float, mode: str
) -> Span | None:
    """The whole series, if a straight line explains it better than steps do."""
    count = len(values)
    if mode == "exact" or count < DRIFT:
        return None
    (first, last), distances = off_the_line(values)
    if abs(last - first) <= max(least_change(first, margin, mode), floor):
        return None
    if stats.kendalltau(np.arange(count), values.to_numpy()).pvalue > SURE:
        return None
    line = abs(distances)
    steps = np.concatenate([abs(part - part.median()) for part in parts])
    # Of two descriptions the better has the smaller information criterion (Laplace's distribution,
    # as medians are fitted): a line has two numbers, and each further step has two.
    tiny = 1e-6 * abs(last - first)
    line_cost = 2 * count * np.log(line.mean() + tiny) + 2 * np.log(count)
    step_cost = 2 * count * np.log(steps.mean() + tiny) + (2 * len(parts) - 1) * np.log(count)
    if step_cost <= line_cost:
        return None
    quarter = count // 4
    return Span(
        commit=str(values.index[1]),
        last=str(values.index[0]),
        before=values.iloc[:quarter],
        after=values.iloc[-quarter:],
        ends=(first, last),
        later=[],
    )
