"""Changes in a history: the commit at which a series rose, drifted or stopped.

A change that other implementations share is the environment's.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from reports.analysis.series import SERIES_ENVIRONMENT, groups, series
from reports.analysis.steps import (
    MEMORY_UNITS,
    NOISE,
    Span,
    cut,
    drift_of,
    least_change,
    mode_of,
    noise_of,
    steps,
)

SMALL = 2**20  # a change of fewer bytes is shown after all others
# What the code under test does not change. Where it moves, the environment or the script moved.
CONTROLS = (".builtin", ".reference")
OTHERS_CONTROLS = ("torch", "huggingface")  # in Liger-Kernel's history


@dataclass(frozen=True)
class Change:
    device: str
    workload: str
    dtype: str
    impl: str
    metric: str
    kind: str  # "step", "drift" or "stopped"
    commit: str  # the first of the new values
    last: str  # the commit before it, of the old ones
    before: float
    after: float  # nan if the series stopped
    unit: str
    confidence: float  # 1 - p of Mann-Whitney's test of the values before and after
    fixed: str  # the commit at which a rise was back within the margin; empty: it is open
    shared: float  # by how much the control series changed alike: a ratio, of memory an amount
    environment: bool  # without what is shared, the change is within the margin
    partial_fix: "Change | None"  # the fall that took back half or more of an open rise

    @property
    def cell(self) -> str:
        parts = [self.device, self.workload, self.dtype, self.impl, self.metric]
        return " · ".join(filter(None, parts))

    @property
    def loss(self) -> str:
        """The implementation. In Liger-Kernel's history, the kernel and the provider."""
        kernel, space, _ = self.workload.partition(" ")
        return f"{kernel} {self.impl}" if space else self.impl

    @property
    def is_small(self) -> bool:
        return self.unit == "bytes" and abs(self.after - self.before) < SMALL

    @property
    def rise(self) -> bool:
        return not self.after <= self.before

    @property
    def size(self) -> float:
        """|log(after / before)|; infinite from zero, to zero, and where a series stopped."""
        if not (self.before > 0 and self.after > 0):
            return np.inf
        return abs(float(np.log(self.after / self.before)))

    def __str__(self) -> str:
        state = f"fixed in {self.fixed}" if self.fixed else "open"
        if fall := self.partial_fix:
            state += f", partly fixed in {fall.commit}: back to {_number(fall.after)} {self.unit}"
        at = f"{self.cell}: {self.commit}: "
        if self.kind == "stopped":
            line = f"{at}stopped, no number after {_number(self.before)} {self.unit}, {state}"
        else:
            line = (
                f"{at}{'drift, ' if self.kind == 'drift' else ''}"
                f"{_number(self.before)} → {_number(self.after)} {self.unit}{self._percent()}, "
                f"confidence {100 * self.confidence:.2f} %, {state}"
            )
        if self.environment and self.kind == "stopped":
            return f"{line}; the others stopped too"
        by = self.shared if self.unit in MEMORY_UNITS else self.shared - 1
        if self.environment and abs(by) < 1e-6:
            return f"{line}; a control changed with it in another metric"
        if self.environment and self.unit in MEMORY_UNITS:
            return f"{line}; the others rose by {_number(self.shared)} {self.unit} with it"
        if self.environment:
            return f"{line}; the others rose by {100 * (self.shared - 1):.1f} % with it"
        return line

    def _percent(self) -> str:
        return f" ({100 * (self.after / self.before - 1):+.1f} %)" if self.before else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1e4 else f"{value:.4g}"


def largest_first(rows: pd.DataFrame, margin: float) -> list[Change]:
    """Every change of more than ``margin`` (0.05: 5 %) in the history of a cell, the largest first.

    A change of bytes or of a count has no margin. A series that stopped is a rise.
    """
    found = [one for of in changes(groups(rows), margin) for one in of]
    return sorted(found, key=lambda one: -one.size)


def changes(histories: Sequence[pd.DataFrame], margin: float) -> list[list[Change]]:
    """For each history, a group of ``series.groups``: every change by more than ``margin``.

    A change is the environment's in two cases. First, the other implementations of the group change
    alike at the same commits: at the median by a ratio, in memory by an amount. Second, a control
    changes at that commit in another metric of the workload, and changes as much or more.

    An open rise may be partly fixed (``partial_fix``).
    """
    found = [_changes_of(group, margin) for group in histories]
    moved: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    places = [(_place(group), str(group.iloc[0]["metric"])) for group in histories]
    for (place, metric), of_group in zip(places, found, strict=True):
        for one in of_group:
            if _is_control(one.impl):
                moved[*place, one.commit][metric] = one.size
    judged = [
        [
            replace(
                one, environment=one.environment or _is_shared(one, moved, place, metric, margin)
            )
            for one in of_group
        ]
        for (place, metric), of_group in zip(places, found, strict=True)
    ]
    return [
        [replace(one, partial_fix=_partial_fix(one, of[n + 1 :])) for n, one in enumerate(of)]
        for of in judged
    ]


def _partial_fix(one: Change, later: Sequence[Change]) -> Change | None:
    """The first later fall after which at most half of an open rise is left.

    The fall is a change itself: the same detector found it, beyond the margin and the noise. Half
    is taken of the difference, in the rise's unit. If several falls take back half together, the
    last of them is returned. A fall of the environment does not fix a rise of the code.
    """
    if not one.rise or one.fixed:
        return None
    half = (one.before + one.after) / 2
    for other in later:
        is_alike = other.impl == one.impl and other.environment == one.environment
        if is_alike and not other.rise and other.after <= half:
            return other
    return None


def _is_shared(
    one: Change,
    moved: Mapping[tuple[object, ...], Mapping[str, float]],
    place: tuple[object, ...],
    metric: str,
    margin: float,
) -> bool:
    """Whether a control changed as much or more at the same commit, in another metric."""
    sizes = [size for other, size in moved.get((*place, one.commit), {}).items() if other != metric]
    return not _is_control(one.impl) and one.size <= max(sizes, default=-np.inf) + np.log1p(margin)


def _place(group: pd.DataFrame) -> tuple[object, ...]:
    keys = [*SERIES_ENVIRONMENT, "workload", "text", "dtype"]
    return tuple(str(group.iloc[0][key]) for key in keys)


def _is_control(impl: str) -> bool:
    return impl.endswith(CONTROLS) or impl in OTHERS_CONTROLS


def _changes_of(group: pd.DataFrame, margin: float) -> list[Change]:
    of = group.iloc[0]
    raw = series(group)
    numbers = {impl: one.dropna() for impl, one in raw.items() if one.notna().any()}
    mode = mode_of(of, numbers)
    values = numbers if mode != "ratio" else {i: np.log(one) for i, one in numbers.items()}
    parts = {impl: cut(one, margin, mode) for impl, one in values.items()}
    noise = {impl: noise_of(values[impl], of_impl) for impl, of_impl in parts.items()}
    together = pd.DataFrame(values)
    found = list(_stops(raw, of))
    for impl, of_impl in parts.items():
        others = [name for name in parts if name != impl]
        floor = NOISE * max(noise[impl], np.median([noise[name] for name in others] or [0.0]))
        spans, kind = list(steps(of_impl, margin, floor, mode)), "step"
        if drift := drift_of(values[impl], of_impl, margin, floor, mode):
            spans, kind = [drift], "drift"
        found += [
            _change(impl, of, kind, span, together[others], margin, floor, mode) for span in spans
        ]
    return found


def _stops(raw: dict[str, pd.Series], of: pd.Series) -> Iterator[Change]:
    """Each series that has numbers, and none from some commit on.

    If half of the other series or more stop at the same commit, the environment stopped them.
    """
    table = pd.DataFrame({impl: one.notna() for impl, one in raw.items()})
    for impl, one in raw.items():
        has = one.notna()
        for at in np.flatnonzero(~has & has.shift(fill_value=False)):
            commit, last = str(one.index[at]), str(one.index[at - 1])
            again = has.iloc[at:]
            others = table.drop(columns=impl)
            ran = others.columns[others.loc[last].eq(True)]
            stopped = others.loc[commit, ran].eq(False)
            yield Change(
                **_cell(impl, of),
                kind="stopped",
                commit=commit,
                last=last,
                before=float(one.iloc[at - 1]),
                after=np.nan,
                unit=str(of["unit"]),
                confidence=1.0,
                fixed=str(again.idxmax()) if again.any() else "",
                shared=np.nan,
                environment=bool(len(ran) and stopped.mean() >= 0.5),
                partial_fix=None,
            )


def _change(
    impl: str,
    of: pd.Series,
    kind: str,
    span: Span,
    others: pd.DataFrame,
    margin: float,
    floor: float,
    mode: str,
) -> Change:
    before, after = span.before, span.after
    change, moved = span.ends[1] - span.ends[0], after.median() - before.median()
    sign = np.sign(change)
    least = least_change(span.ends[0], margin, mode)
    shifts = others.reindex(after.index).median() - others.reindex(before.index).median()
    # Of a drift, ``before`` and ``after`` see a part only: the others' part is extended likewise.
    shared = sign * np.nanmax([sign * shifts.median() * change / moved, 0.0])
    fixed = [
        part.index[0] for part in span.later if change > 0 and part.median() <= span.ends[0] + least
    ]
    greater = "greater" if change > 0 else "less"
    p = 0.0 if mode == "exact" else stats.mannwhitneyu(after, before, alternative=greater).pvalue
    shown = np.exp if mode == "ratio" else float
    return Change(
        **_cell(impl, of),
        kind=kind,
        commit=span.commit,
        last=span.last,
        before=float(shown(span.ends[0])),
        after=float(shown(span.ends[1])),
        unit=str(of["unit"]),
        confidence=1 - float(p),
        fixed=str(fixed[0]) if fixed else "",
        shared=float(shown(shared)),
        environment=bool(sign * (change - shared) <= max(least, floor)),
        partial_fix=None,
    )


def _cell(impl: str, of: pd.Series) -> dict[str, str]:
    place = of[["device", "workload", "dtype", "metric"]].fillna("").map(str)
    return {**place, "impl": impl}
