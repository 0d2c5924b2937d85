"""Raw pairs of two revisions to verdicts: regressed, improved, equivalent or inconclusive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CELL = ["workload", "dtype", "impl", "metric"]
ENVIRONMENT = ["machine", "hardware", "isa", "threads", "allocator", "torch", "driver"]
COLUMNS = [
    *ENVIRONMENT,
    *("base", "head", "margin", "workload", "dtype"),
    *("impl", "metric", "unit", "role", "pair", "round", "value"),
]
# Of one look at one cell, which is looked at after each pair and may be decided at each look: what
# that comes to over twenty looks, tests/test_verdicts.py simulates.
ALPHA = 0.005
PAIRS = 4  # at least, before a look
ROLES = ("head", "control", "planted")
FALSE_DISCOVERIES = 0.01  # of all cells called regressed or improved, by Benjamini-Hochberg


class Incomparable(ValueError):
    """Two numbers of different environments; the message names the field that differs."""


@dataclass(frozen=True)
class Effect:
    """The head's time over the base's, as a log: its mean over pairs, and an interval."""

    mean: float
    low: float
    high: float
    p: float  # that it is within half the margin
    verdict: str


def effect(pairs: Sequence[float], margin: float) -> Effect:
    """The verdict on log-ratios, one for each pair of processes, which are independent.

    Student's interval of their mean, two-sided at 2 ``ALPHA``. Equivalent: it lies within ±margin.
    Regressed: it lies above half the margin, so that a change of the margin itself can be seen;
    improved, likewise. Else, and with fewer than ``PAIRS``, inconclusive.
    """
    limit = np.log1p(margin)
    if len(pairs) < PAIRS:
        mean = float(np.mean(pairs)) if len(pairs) else np.nan
        return Effect(mean, -np.inf, np.inf, 1.0, "inconclusive")
    test = stats.ttest_1samp(pairs, 0.0)
    low, high = test.confidence_interval(1 - 2 * ALPHA)
    mean = float(np.mean(pairs))
    side = "greater" if mean > 0 else "less"
    p = stats.ttest_1samp(pairs, np.copysign(limit / 2, mean), alternative=side).pvalue
    if -limit < low and high < limit:
        verdict = "equivalent"
    elif low > limit / 2:
        verdict = "regressed"
    elif high < -limit / 2:
        verdict = "improved"
    else:
        verdict = "inconclusive"
    return Effect(mean, float(low), float(high), float(p), verdict)


def log_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one cell's rows, a row for each pair of processes: log(time / the base's) of each role.

    It is the median over the rounds, each of which compares the two as they were measured in turn.
    """
    logs = np.log(rows.set_index(["pair", "round", "role"])["value"]).unstack("role")
    return logs.reindex(columns=list(ROLES)).sub(logs["base"], axis=0).groupby("pair").median()


def effects(logs: pd.DataFrame, margin: float) -> dict[str, Effect]:
    """The effect of the head, the control and the planted slowdown, of their ``log_ratios``."""
    return {role: effect(logs[role].dropna().to_numpy(), margin) for role in ROLES}


def proven(found: dict[str, Effect]) -> bool:
    """The base against itself did not move, and the planted slowdown was seen."""
    return found["control"].verdict == "equivalent" and found["planted"].verdict == "regressed"


def verdicts(rows: pd.DataFrame, margin: float | None = None) -> pd.DataFrame:
    """A row for each cell: what it is, verdict, base, head, ratio, low, high, pairs.

    Raises ``Incomparable`` if a cell's numbers are of different environments.
    """
    out = []
    for names, cell in rows.groupby(CELL, sort=False):
        one: dict[str, Any] = dict(zip(CELL, names, strict=True))
        for field in ENVIRONMENT:
            if cell[field].nunique(dropna=False) > 1:
                both = " and ".join(map(str, cell[field].unique()))
                raise Incomparable(f"{one['impl']} {one['metric']}: {field} differs, {both}")
        least = float(cell["margin"].iloc[0]) if margin is None else margin
        medians = cell.groupby("role")["value"].median()
        one["unit"] = cell["unit"].iloc[0]
        one |= {"base": medians.get("base"), "head": medians.get("head")}
        if cell["pair"].isna().all():
            out.append(one | exact(one["metric"], one["base"], one["head"]))
            continue
        found = effects(log_ratios(cell), least)
        head = found["head"]
        verdict = head.verdict if proven(found) else "unproven"
        times = {"ratio": np.exp(head.mean), "low": np.exp(head.low), "high": np.exp(head.high)}
        pairs = cell["pair"].nunique()
        out.append(one | times | {"p": head.p, "pairs": pairs, "verdict": verdict})
    table = pd.DataFrame(out)
    return table if table.empty else discoveries(table)


def exact(metric: str, base: float, head: float) -> dict[str, object]:
    """Bytes are compared to the byte; an error beyond its budget (1) is wrong."""
    if metric == "error":
        return {"verdict": "wrong" if not head <= 1 else "right"}
    change = "regressed" if head > base else "improved" if head < base else "equivalent"
    return {"verdict": change, "ratio": head / base if base else np.nan}


def discoveries(table: pd.DataFrame) -> pd.DataFrame:
    """Of times called regressed or improved, those that hold among so many cells."""
    if "p" not in table:
        return table
    timed = table["p"].notna()
    adjusted = pd.Series(np.nan, index=table.index)
    adjusted[timed] = stats.false_discovery_control(table.loc[timed, "p"].to_numpy())
    lost = table["verdict"].isin(["regressed", "improved"]) & (adjusted > FALSE_DISCOVERIES)
    return table.assign(verdict=table["verdict"].mask(lost, "inconclusive"))


def markdown(table: pd.DataFrame) -> str:
    """The verdicts as a table for people, and for a pull request."""
    lines = ["| impl | what | base | head | change | verdict |", "|:--|:--|--:|--:|--:|:--|"]
    for one in table.itertuples():
        unit = "" if one.metric == "error" else f" {one.unit}"
        number = "{:,.0f}" if one.unit == "bytes" else "{:.3g}"
        base, head = (number.format(value) + unit for value in (one.base, one.head))
        change = ""
        if one.unit == "ms":
            change = f"{_percent(one.ratio)} [{_percent(one.low)}, {_percent(one.high)}]"
        elif one.unit == "bytes":
            change = f"{one.head - one.base:+,.0f} bytes"
        lines.append(
            f"| {one.impl} | {one.metric} | {base} | {head} | {change} | **{one.verdict}** |"
        )
    return "\n".join(lines)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %" if np.isfinite(ratio) else "?"
