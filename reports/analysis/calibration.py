"""How often verdicts are wrong on a machine: the same code is compared with itself many times."""

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from reports.analysis.verdicts import (
    CELL,
    COMPARABLE,
    PAIRS,
    UNDECIDED,
    conclusion,
    effects,
    log_ratios,
)

TABLE = Path(__file__).with_suffix(".csv")  # the calibrations of all machines
POWER = 0.95
CHANGES = np.arange(0.0025, 0.2, 0.0025)


def calibration(rows: pd.DataFrame, margin: float, at_most: Sequence[int]) -> pd.DataFrame:
    """A row for each number of pairs and each cell, and for all cells, from pairs of the same code.

    The pairs of a cell are cut into comparisons of ``at_most`` pairs. Each comparison ends as
    ``compare`` would end it: at its first verdict, or without a verdict.

    - ``false``: comparisons that were called regressed or improved.
    - ``false_below``: the one-sided 95 % upper bound of the rate of such comparisons.
    - ``seen``: the smallest slowdown that ``POWER`` of the comparisons call regressed when it is
      added to the measurements, in steps of 0.25 %; nan if there is none.
    - ``scatter``: the standard deviation of a pair's log-ratio. It is estimated from the median
      absolute deviation, as a few pairs are disturbed.
    """
    cells = {cell: log_ratios(of) for cell, of in rows.groupby(CELL, sort=False)}
    environment = rows[COMPARABLE].drop_duplicates().to_dict("records")
    out = []
    for pairs in at_most:
        parts = {cell: cut(logs, pairs) for cell, logs in cells.items()}
        parts["", "", "all", ""] = [part for of_cell in parts.values() for part in of_cell]
        out += [
            {**dict(zip(CELL, cell, strict=True)), "margin": margin, "at_most": pairs}
            | worth(of_cell, margin)
            for cell, of_cell in parts.items()
            if of_cell
        ]
    return pd.DataFrame(out).assign(**(environment[0] if len(environment) == 1 else {}))


def cut(logs: pd.DataFrame, pairs: int) -> list[pd.DataFrame]:
    """The whole comparisons of ``pairs`` pairs."""
    return [logs.iloc[end - pairs : end] for end in range(pairs, len(logs) + 1, pairs)]


def worth(comparisons: list[pd.DataFrame], margin: float) -> dict[str, float]:
    every = pd.concat(comparisons)
    verdicts, pairs = zip(*(ended(logs, margin) for logs in comparisons), strict=True)
    false = sum(verdict in ("regressed", "improved") for verdict in verdicts)

    def power(change: float) -> float:
        slower = [logs.assign(head=logs["head"] + np.log1p(change)) for logs in comparisons]
        return float(np.mean([ended(logs, margin)[0] == "regressed" for logs in slower]))

    seen = bisect.bisect_left(CHANGES, POWER, key=power)
    return {
        "comparisons": len(verdicts),
        "false": false,
        "false_below": upper_bound(false, len(verdicts)),
        "equivalent": verdicts.count("equivalent"),
        "undecided": sum(verdict in UNDECIDED for verdict in verdicts),
        "pairs": float(np.median(pairs)),
        "scatter": float(stats.median_abs_deviation(every["head"], scale="normal")),
        "seen": float(CHANGES[seen]) if seen < len(CHANGES) else np.nan,
    }


def upper_bound(false: int, comparisons: int) -> float:
    """The one-sided 95 % upper bound of a rate (Clopper and Pearson), as 1.49 % for 0 of 200."""
    return float(stats.binomtest(false, comparisons, alternative="less").proportion_ci().high)


def ended(logs: pd.DataFrame, margin: float) -> tuple[str, int]:
    """The verdict with which a comparison of these pairs ends, and the number of pairs it took."""
    for count in range(PAIRS, len(logs) + 1):
        verdict = conclusion(effects(logs.iloc[:count], margin), margin)
        if verdict not in UNDECIDED:
            return verdict, count
    return conclusion(effects(logs, margin), margin), len(logs)


def markdown(table: pd.DataFrame) -> str:
    lines = [
        "| cell | margin | at most | comparisons | false | 95 % upper bound | equivalent "
        "| undecided | pairs to a verdict | scatter of a pair | slowdown that 95 % see |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in table.itertuples():
        cell = " · ".join(filter(None, (one.impl, one.metric, one.workload, one.dtype)))
        lines.append(
            f"| {cell} | {_percent(one.margin)} | {one.at_most} pairs | {one.comparisons} "
            f"| {one.false} | {_percent(one.false_below)} | {one.equivalent} | {one.undecided} "
            f"| {one.pairs:.0f} | {_percent(one.scatter)} | {_percent(one.seen)} |"
        )
    return "\n".join(lines)


def record(table: pd.DataFrame, path: Path = TABLE) -> None:
    """Write ``table`` to ``path``, where it replaces rows of the same machine and margin."""
    if path.exists():
        same = [*COMPARABLE, "margin"]
        known, new = _read(path), table[same].astype(str).agg("|".join, axis=1)
        kept = known[~known[same].astype(str).agg("|".join, axis=1).isin(new)]
        table = pd.concat([kept, table])
    table.to_csv(path, index=False)


def statement(environment: Mapping[str, object], margin: float, path: Path = TABLE) -> str:
    """The calibration of this environment at this margin, to be shown below verdicts."""
    known = _read(path) if path.exists() else pd.DataFrame(columns=[*COMPARABLE, *CELL, "margin"])
    of_all = known[(known["impl"] == "all") & (known["margin"] == margin)]
    for field in COMPARABLE:
        of_all = of_all[of_all[field].astype(str) == str(environment[field])]
    lines = [
        f"Calibrated here: of {one.comparisons} comparisons of the same code, of at most "
        f"{one.at_most} pairs, {one.false} were called changed (95 % upper bound: "
        f"{_percent(one.false_below)}), {one.undecided} were undecided; slowdown that 95 % of them "
        f"see: {_percent(one.seen)}."
        for one in of_all.itertuples()
    ]
    return "\n".join(lines) or (
        "How often verdicts are wrong on this machine is not known: `python -m benchmarks "
        "calibrate` measures it."
    )


def _read(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path, dtype=dict.fromkeys(COMPARABLE, str))
    return rows.fillna(dict.fromkeys([*COMPARABLE, *CELL], ""))


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if np.isfinite(value) else "none"
