"""Steps in a history: the commit at which a series rose, and what else rose with it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from asv.step_detect import detect_steps
from scipy import stats

from reports.analysis.selection import by_date

# What a number's comparability rests on; series that differ in one of these are never mixed.
SERIES_ENVIRONMENT = ["source", "machine", "device", "hardware", "torch", "threads", "allocator"]
QUANTITY = ["workload", "dtype", "metric", "unit"]
SEGMENT = 2  # commits at least on either side of a step: one alone proves nothing
NOISE = 3.0  # times the noise floor that a step must rise


@dataclass(frozen=True)
class Change:
    cell: str
    impl: str
    commit: str  # the first of the new values
    last: str  # the commit before it, of the old ones
    before: float
    after: float
    unit: str
    confidence: float  # 1 - p of Mann-Whitney's test of the values before and after
    mended: str  # the commit at which a rise was back within the margin; empty: it is open
    shared: float  # the ratio by which the control series changed alike at the same commit
    environment: bool  # without what is shared, the change is within the margin

    @property
    def rise(self) -> bool:
        return self.after > self.before

    def __str__(self) -> str:
        state = f"mended at {self.mended}" if self.mended else "open"
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
    """The histories whose numbers can be compared: those of one quantity in one environment.

    A share is none of these: of more overlap there is nothing to mend. Nor is a first call, which
    the compiler's cache decides.
    """
    rows = rows[(rows["unit"] != "share") & (rows["metric"] != "first_call")]
    found = rows.groupby([*SERIES_ENVIRONMENT, *QUANTITY], dropna=False, sort=False)
    return [group for _, group in found]


def series(group: pd.DataFrame) -> dict[str, pd.Series]:
    """For each implementation of a group: commit to value, the median if there are more."""
    usable = by_date(group[group["value"].between(0, np.inf, inclusive="neither")])
    medians = usable.groupby(["impl", "commit"], sort=False)["value"].median()
    return {
        str(impl): one.droplevel("impl") for impl, one in medians.groupby(level="impl", sort=False)
    }


def changes(group: pd.DataFrame, margin: float) -> list[Change]:
    """Every change by more than ``margin`` in the series of a group.

    Series are cut where asv's ``step_detect`` cuts them. Their controls are the series of the
    other implementations at the same commits, in the same environment: by what these change at the
    median, it is the environment that changed. The noise floor is the larger of a series' own
    scatter about its steps and its controls'.
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
    """Where each step of a series begins and ends; one within the margin is not searched."""
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
        mended = [
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
            mended=str(mended[0]) if mended else "",
            shared=float(np.exp(shared)),
            environment=bool(sign * (change - shared) <= least),
        )
