"""Raw pairs of two revisions to verdicts: regressed, improved, equivalent or inconclusive."""

import functools
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
    *("impl", "metric", "unit", "role", "pair", "block", "value"),
]
# Of either end of an interval, at one look at one cell: it is looked at after each pair and may be
# decided at each look. What that comes to, tests/reports/analysis/test_verdicts.py simulates.
ALPHA = 0.005
CONTROL_ALPHA = 0.025  # of a control's: it can take a verdict back, but gives none
PAIRS = 8  # at least: of fewer, no test of ranks is as sure as that
BASES = {  # what each role is held against
    "head": ("base", "control"),
    "control": ("base", "planted"),
    "planted": ("base", "control"),
}
NEAR = 2
FALSE_DISCOVERIES = 0.01  # of all cells called regressed or improved, by Benjamini-Hochberg
FAILED = ("regressed", "wrong")  # for which the commands exit with 1


class Incomparable(ValueError):
    """Two numbers of different environments; the message names the field that differs."""


@dataclass(frozen=True)
class Effect:
    """The head's time over the base's, as a log, and an interval."""

    estimate: float
    low: float
    high: float
    p: float  # that it is within half the margin
    verdict: str


def effect(pairs: np.ndarray, margin: float, alpha: float = ALPHA) -> Effect:
    """The verdict on log-ratios, one for each pair of processes, which are independent.

    The estimate is their pseudomedian (Hodges and Lehmann: the median of all means of two), the
    interval that of Wilcoxon's signed-rank test, two-sided at 2 ``alpha``: a pair that something
    else disturbed counts no more than any other. Equivalent: the interval lies within ±margin.
    Regressed: it lies above half the margin, so that a change of the margin itself can be seen;
    improved, likewise. Else, and with fewer than ``PAIRS``, inconclusive.
    """
    limit = np.log1p(margin)
    means = np.sort((pairs[:, None] + pairs)[np.triu_indices(len(pairs))] / 2)
    estimate = float(np.median(means)) if len(means) else np.nan
    if len(pairs) < PAIRS:
        return Effect(estimate, -np.inf, np.inf, 1.0, "inconclusive")
    outside = _outside(len(pairs), alpha)
    low, high = means[outside], means[-1 - outside]
    side = "greater" if estimate > 0 else "less"
    p = stats.wilcoxon(pairs - np.copysign(limit / 2, estimate), alternative=side).pvalue
    if -limit < low and high < limit:
        verdict = "equivalent"
    elif low > limit / 2:
        verdict = "regressed"
    elif high < -limit / 2:
        verdict = "improved"
    else:
        verdict = "inconclusive"
    return Effect(estimate, float(low), float(high), float(p), verdict)


@functools.cache
def _outside(n: int, alpha: float) -> int:
    """How many of the means of two of ``n`` pairs are left outside either end of the interval.

    As many as is the largest rank sum t for which P(sum ≤ t) ≤ ``alpha``.
    """
    ways = np.ones(1)
    for rank in range(1, n + 1):  # signs are as likely + as -: each rank is in the sum, or not
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return int(np.searchsorted(np.cumsum(ways) / 2.0**n, alpha, side="right")) - 1


def planted(margin: float) -> float:
    """By what share of its time the planted process is slowed down, which must be seen."""
    return margin + 0.01


def log_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one cell's rows, a row for each pair of processes: log(time / the base's) of each role.

    Each block is held against those of the base that came at most ``NEAR`` before or after it; the
    ratio is the midmean of these logs, the mean of their middle half. They are of two blocks, never
    of one and the mean of others: what disturbs a block only adds to it, a mean has less of that
    skew, and the same code would differ by a quarter of a percent.

    The head's base is two processes, as these know it better than one: the base's, and the
    control's. The control's is the base's and the planted one's, less its slowdown. That one is no
    part of the head's, as its waits may change its other calls.
    """
    measured = rows.sort_values(["pair", "block"])
    blocks = measured[["pair", "role"]].assign(log=np.log(measured["value"]))
    near = []
    for apart in range(1, NEAR + 1):
        before = blocks.groupby("pair").shift(apart)
        two = blocks.assign(of_base=before["role"], ratio=blocks["log"] - before["log"])
        swapped = two.rename(columns={"role": "of_base", "of_base": "role"})
        near += [two, swapped.assign(ratio=-two["ratio"])]
    held = pd.concat(near, ignore_index=True)
    unplanted = np.log1p(planted(rows["margin"].iloc[0]))
    held.loc[held["of_base"] == "planted", "ratio"] += unplanted
    ratios = {}
    for role, bases in BASES.items():
        of_role = held[(held["role"] == role) & held["of_base"].isin(bases)]
        ratios[role] = of_role.groupby("pair")["ratio"].agg(stats.trim_mean, 0.25)
    return pd.DataFrame(ratios)


def effects(logs: pd.DataFrame, margin: float) -> dict[str, Effect]:
    """The effect of the head, the control and the planted slowdown, of their ``log_ratios``."""
    return {
        role: effect(
            logs[role].dropna().to_numpy(), margin, ALPHA if role == "head" else CONTROL_ALPHA
        )
        for role in BASES
    }


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
        one |= medians.reindex(["base", "head"]).to_dict()
        if cell["pair"].isna().all():
            out.append(one | exact(one["metric"], one["base"], one["head"]))
            continue
        found = effects(log_ratios(cell), least)
        head = found["head"]
        verdict = head.verdict if proven(found) else "unproven"
        times = {"ratio": np.exp(head.estimate), "low": np.exp(head.low), "high": np.exp(head.high)}
        pairs = cell["pair"].nunique()
        out.append(one | times | {"p": head.p, "pairs": pairs, "verdict": verdict})
    table = pd.DataFrame(out)
    return table if table.empty else discoveries(table)


def exact(metric: str, base: float, head: float) -> dict[str, object]:
    """Bytes are compared to the byte. An error beyond its budget (1) is wrong, and no change if it
    was before."""
    if np.isnan(base + head):  # interrupted before both were there
        return {"verdict": "inconclusive"}
    if metric == "error":
        change = "right" if head <= 1 else "wrong" if base <= 1 else "wrong in both"
        return {"verdict": change}
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
    return f"{100 * (ratio - 1):+.1f} %" if 0 < ratio < np.inf else "?"
