"""What verdicts are worth on a machine: the same code, measured against itself over and over."""

import bisect

import numpy as np
import pandas as pd
from scipy import stats

from reports.verdicts import CELL, PAIRS, effects, log_ratios, proven

POWER = 0.95
CHANGES = np.arange(0.0025, 0.2, 0.0025)


def calibration(rows: pd.DataFrame, margin: float, pairs: int) -> pd.DataFrame:
    """A row for each cell, and for all of them together, of ``rows`` of the same code.

    The pairs of a cell are cut into comparisons of ``pairs``, each of which ends as it would have:
    at its first verdict, or without one. ``seen`` is the smallest slowdown that ``POWER`` of them
    call regressed if it is added to what was measured, in steps of 0.25 %; nan if none is.
    """
    comparisons = {
        cell: [part for part in cut(log_ratios(of), pairs) if len(part) == pairs]
        for cell, of in rows.groupby(CELL, sort=False)
    }
    every = [part for parts in comparisons.values() for part in parts]
    if len(comparisons) > 1:
        comparisons["all", "", "", ""] = every
    return pd.DataFrame(
        dict(zip(CELL, cell, strict=True)) | worth(parts, margin)
        for cell, parts in comparisons.items()
        if parts
    )


def cut(logs: pd.DataFrame, pairs: int) -> list[pd.DataFrame]:
    return [logs.iloc[start : start + pairs] for start in range(0, len(logs), pairs)]


def worth(comparisons: list[pd.DataFrame], margin: float) -> dict[str, float]:
    """The counts of their verdicts, of which every regressed or improved one is false."""
    verdicts, pairs = zip(*(ended(logs, margin) for logs in comparisons), strict=True)
    false = sum(verdict in ("regressed", "improved") for verdict in verdicts)
    interval = stats.binomtest(false, len(verdicts)).proportion_ci(0.95)

    def power(change: float) -> float:
        slower = [logs.assign(head=logs["head"] + np.log1p(change)) for logs in comparisons]
        return float(np.mean([ended(logs, margin)[0] == "regressed" for logs in slower]))

    index = bisect.bisect_left(CHANGES, POWER, key=power)
    return {
        "comparisons": len(verdicts),
        "false": false,
        "false_high": float(interval.high),
        **{name: verdicts.count(name) for name in ("equivalent", "inconclusive", "unproven")},
        "pairs": float(np.median(pairs)),
        "scatter": float(np.concatenate([logs["head"] for logs in comparisons]).std()),
        "seen": float(CHANGES[index]) if index < len(CHANGES) else np.nan,
    }


def ended(logs: pd.DataFrame, margin: float) -> tuple[str, int]:
    """The verdict at which a comparison of these pairs ends, and after how many of them."""
    for count in range(PAIRS, len(logs) + 1):
        found = effects(logs.iloc[:count], margin)
        if proven(found) and found["head"].verdict != "inconclusive":
            return found["head"].verdict, count
    return "inconclusive" if proven(found) else "unproven", len(logs)


def markdown(table: pd.DataFrame, margin: float, pairs: int) -> str:
    lines = [
        f"At most {pairs} pairs a comparison, margin {100 * margin:g} %.\n",
        "| cell | comparisons | false | 95 % sure it is below | equivalent | undecided "
        "| pairs to a verdict | scatter of a pair | slowdown that 95 % see |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in table.itertuples():
        cell = " · ".join(filter(None, (one.impl, one.metric, one.workload, one.dtype)))
        seen = f"{100 * one.seen:.2f} %" if np.isfinite(one.seen) else "none"
        lines.append(
            f"| {cell} | {one.comparisons} | {one.false} | {100 * one.false_high:.1f} % "
            f"| {one.equivalent} | {one.inconclusive + one.unproven} | {one.pairs:.0f} "
            f"| {100 * one.scatter:.2f} % | {seen} |"
        )
    return "\n".join(lines)
