"""Change points in a history: the commit at which a series changed, and what changed with it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from asv.step_detect import detect_steps
from scipy import stats

from reports.analysis.selection import by_date

# Series that differ in one of these fields are never mixed.
SERIES_ENVIRONMENT = ["source", "machine", "device", "hardware", "torch", "threads", "allocator"]
QUANTITY = ["workload", "dtype", "metric", "unit"]
SEGMENT = 2  # commits at least on either side of a change: a single commit proves nothing
NOISE = 3.0  # a change must be at least so many times the noise floor


@dataclass(frozen=True)
class Change:
    cell: str
    impl: str
    commit: str  # the first commit with the new values
    last: str  # the commit before it, the last with the old values
    before: float
    after: float
    unit: str
    confidence: float  # 1 - p of Mann-Whitney's test of the values before and after
    fixed: str  # the commit at which the rise was back within the margin; empty: still open
    shared: float  # the ratio by which the control series changed at the same commit
    environment: bool  # the change is within the margin if the shared change is taken away

    @property
    def rise(self) -> bool:
        return self.after > self.before

    def __str__(self) -> str:
        state = f"fixed in {self.fixed}" if self.fixed else "open"
        line = (
            f"{self.cell}: {self.commit}: {self.before:.4g} → {self.after:.4g} {self.unit} "
            f"({100 * (self.after / self.before - 1):+.1f} %), confidence "
            f"{100 * self.confidence:.2f} %, {state}"
        )
        if self.environment:
            return f"{line}; the others rose by {100 * (self.shared - 1):.1f} % with it"
        return line


def regressions(rows: pd.DataFrame, margin: float) -> list[Change]:
    """Every rise of more than ``margin`` (0.05: 5 %) in the history of a cell, the worst first."""
    found = [one for group in groups(rows) for one in changes(group, margin) if one.rise]
    return sorted(found, key=lambda one: one.before / one.after * one.shared)


def groups(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The histories whose numbers can be compared: a quantity in an environment each.

    Shares have no history, as more overlap is no fault. First calls have none, as the compiler's
    cache decides how long they take.
    """
    rows = rows[(rows["unit"] != "share") & (rows["metric"] != "first_call")]
    found = rows.groupby([*SERIES_ENVIRONMENT, *QUANTITY], dropna=False, sort=False)
    return [group for _, group in found]


def series(group: pd.DataFrame) -> dict[str, pd.Series]:
    """The values by commit of each implementation of a group: medians, if a commit has several."""
    usable = by_date(group[group["value"].between(0, np.inf, inclusive="neither")])
    medians = usable.groupby(["impl", "commit"], sort=False)["value"].median()
    return {
        str(impl): one.droplevel("impl") for impl, one in medians.groupby(level="impl", sort=False)
    }


def changes(group: pd.DataFrame, margin: float) -> list[Change]:
    """Every change by more than ``margin`` in the series of a group.

    asv's ``step_detect`` finds the steps of a series. The controls of a series are the series of
    the other implementations at the same commits, in the same environment. Their median change is a
    change of the environment. The noise floor is the scatter of the series about its steps, or the
    median scatter of its controls if that is larger.
    """
    logs = {impl: np.log(one) for impl, one in series(group).items()}
    cuts = {impl: _steps(one, margin) for impl, one in logs.items()}
    noise = {impl: _scatter(logs[impl], steps) for impl, steps in cuts.items()}
    together = pd.DataFrame(logs)
    found: list[Change] = []
    for impl, steps in cuts.items():
        others = [name for name in cuts if name != impl]
        floor = max(noise[impl], np.median([noise[name] for name in others]) if others else 0)
        least = max(np.log1p(margin), NOISE * floor)
        found += _changes(impl, group.iloc[0], logs[impl], steps, together[others], least, margin)
    return found


def _steps(logs: pd.Series, margin: float) -> list[tuple[int, int]]:
    """The begin and end of each step. A series within the margin has a single step."""
    if logs.max() - logs.min() <= np.log1p(margin):
        return [(0, len(logs))]
    return [(left, right) for left, right, *_ in detect_steps(list(logs))]


def _scatter(logs: pd.Series, steps: list[tuple[int, int]]) -> float:
    parts = [logs.to_numpy()[left:right] for left, right in steps]
    around = np.concatenate([part - np.median(part) for part in parts])
    return float(stats.median_abs_deviation(around, scale="normal"))


def _changes(
    impl: str,
    of: pd.Series,
    series: pd.Series,
    steps: list[tuple[int, int]],
    others: pd.DataFrame,
    least: float,
    margin: float,
) -> Iterator[Change]:
    parts = [series.iloc[left:right] for left, right in steps]
    for index, (before, after) in enumerate(itertools.pairwise(parts)):
        change = after.median() - before.median()
        if abs(change) <= least or min(len(before), len(after)) < SEGMENT:
            continue
        sign = np.sign(change)
        shifts = others.reindex(after.index).median() - others.reindex(before.index).median()
        shared = sign * np.nanmax([sign * shifts.median(), 0.0])
        fixed = [
            part.index[0]
            for part in parts[index + 2 :]
            if change > 0 and part.median() <= before.median() + np.log1p(margin)
        ]
        test = stats.mannwhitneyu(after, before, alternative="greater" if change > 0 else "less")
        yield Change(
            cell=" · ".join(filter(None, map(str, of[["device", "workload", "dtype"]].dropna())))
            + f" · {impl} · {of['metric']}",
            impl=impl,
            commit=str(after.index[0]),
            last=str(before.index[-1]),
            before=float(np.exp(before.median())),
            after=float(np.exp(after.median())),
            unit=str(of["unit"]),
            confidence=1 - float(test.pvalue),
            fixed=str(fixed[0]) if fixed else "",
            shared=float(np.exp(shared)),
            environment=bool(sign * (change - shared) <= least),
        )
