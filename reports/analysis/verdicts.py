"""Verdicts on raw pairs of two targets: regressed, improved, equivalent, inconclusive, unproven."""

import argparse
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CELL = ["workload", "dtype", "impl", "metric"]
# Numbers that differ in one of these fields are never compared.
COMPARABLE = ["machine", "hardware", "isa", "threads", "allocator", "torch", "driver"]
PAIR_COLUMNS = [
    *COMPARABLE,
    *("base", "head", "margin", "workload", "dtype"),
    *("impl", "metric", "unit", "role", "pair", "block", "value"),
]
PAIR_NUMBERS = ["margin", "pair", "block", "value"]
# How pandas reads a CSV of pairs: a commit can be digits alone, and a loss can be called NA.
PAIR_TYPES = {
    "dtype": {name: str for name in PAIR_COLUMNS if name not in PAIR_NUMBERS},
    "keep_default_na": False,
    "na_values": {name: [""] for name in PAIR_NUMBERS},
}
# The error rate of either end of an interval, for a single look at a cell. A cell is looked at
# after each pair, and each look may decide. tests/reports/analysis/test_verdicts.py simulates the
# rate of false verdicts that follows.
ALPHA = 0.005
CONTROL_ALPHA = 0.025  # for a control, which can take a verdict back but gives none
PAIRS = 8  # at least: with fewer, no rank test reaches ALPHA
BASES = {  # the roles that each role is compared with
    "head": ("base", "control"),
    "control": ("base", "planted"),
    "planted": ("base", "control"),
}
NEAR = 2  # blocks further apart are not compared
FALSE_DISCOVERIES = 0.01  # the rate among cells called regressed or improved (Benjamini-Hochberg)
FAILED = ("regressed", "wrong")  # with one of these the commands exit with 1
UNDECIDED = ("inconclusive", "unproven")


class Incomparable(ValueError):
    """The numbers are of different environments. The message names the field that differs."""


@dataclass(frozen=True)
class Effect:
    """The log of the ratio of times, head to base, with its interval and verdict."""

    estimate: float
    low: float
    high: float
    verdict: str


def effect(pairs: np.ndarray, margin: float, alpha: float = ALPHA) -> Effect:
    """The verdict on log-ratios. Each is of a pair of processes, and pairs are independent.

    The estimate is the pseudomedian (Hodges and Lehmann: the median of the means of all twos). The
    interval is that of Wilcoxon's signed-rank test, two-sided at 2 ``alpha``. A pair that something
    disturbed therefore counts no more than any other pair.

    - Equivalent: the interval lies within ±margin.
    - Regressed: it lies above half the margin, so that a change of the margin itself can be seen.
    - Improved: it lies below minus half the margin.
    - Inconclusive: none of these, or fewer than ``PAIRS`` pairs.
    """
    log_margin = np.log1p(margin)
    means = np.sort((pairs[:, None] + pairs)[np.triu_indices(len(pairs))] / 2)
    estimate = float(np.median(means)) if len(means) else np.nan
    if len(pairs) < PAIRS:
        return Effect(estimate, -np.inf, np.inf, "inconclusive")
    outside = _outside(len(pairs), alpha)
    low, high = means[outside], means[-1 - outside]
    if -log_margin < low and high < log_margin:
        verdict = "equivalent"
    elif low > log_margin / 2:
        verdict = "regressed"
    elif high < -log_margin / 2:
        verdict = "improved"
    else:
        verdict = "inconclusive"
    return Effect(estimate, float(low), float(high), verdict)


def p_value(pairs: np.ndarray, estimate: float, margin: float) -> float:
    """The p-value of the test that the ratio is within half the margin.

    It takes longer than ``effect``, and only a table of many cells needs it.
    """
    if len(pairs) < PAIRS:
        return 1.0
    end = np.copysign(np.log1p(margin) / 2, estimate)
    side = "greater" if estimate > 0 else "less"
    return float(stats.wilcoxon(pairs - end, alternative=side).pvalue)


@functools.cache
def _outside(n: int, alpha: float) -> int:
    """How many of the means of two of ``n`` pairs lie outside either end of the interval.

    The number is the largest rank sum t for which P(sum ≤ t) ≤ ``alpha``.
    """
    ways = np.ones(1)
    for rank in range(1, n + 1):  # each rank is in the sum with probability 1/2
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return int(np.searchsorted(np.cumsum(ways) / 2.0**n, alpha, side="right")) - 1


def parse_margin(text: str) -> float:
    """The type of an option ``--margin``: a share between 0 and 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a margin is between 0 and 1, as 0.02 for 2 %")
    return value


def injected_slowdown(margin: float) -> float:
    """The share of its time by which the process of role "planted" is slowed down."""
    return margin + 0.01


def log_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each pair of processes of a cell: log(time / time of the base) of each role.

    Each block is compared with base blocks at most ``NEAR`` positions away. The ratio is the
    midmean of these logs: the mean of their middle half. Each log is of two blocks, never of a
    block and a mean of blocks: a disturbance only adds time, a mean has less of this skew than a
    block, and the same code would differ by a quarter of a percent.

    For the head, the base is two processes, base and control: two processes know the base better
    than one. For the control, the base is base and "planted", whose slowdown is subtracted.
    "Planted" is no base of the head, as its waits may change its other calls.
    """
    measured = rows.sort_values(["pair", "block"])
    blocks = measured[["pair", "role"]].assign(log=np.log(measured["value"]))
    near = []
    for apart in range(1, NEAR + 1):
        before = blocks.groupby("pair").shift(apart)
        two = blocks.assign(of_base=before["role"], ratio=blocks["log"] - before["log"])
        swapped = two.rename(columns={"role": "of_base", "of_base": "role"})
        near += [two, swapped.assign(ratio=-two["ratio"])]
    compared = pd.concat(near, ignore_index=True)
    slowdown = np.log1p(injected_slowdown(rows["margin"].iloc[0]))
    compared.loc[compared["of_base"] == "planted", "ratio"] += slowdown
    ratios = {}
    for role, bases in BASES.items():
        of_role = compared[(compared["role"] == role) & compared["of_base"].isin(bases)]
        ratios[role] = of_role.groupby("pair")["ratio"].agg(stats.trim_mean, 0.25)
    return pd.DataFrame(ratios)


def effects(
    logs: pd.DataFrame, margin: float, margin_of_run: float | None = None
) -> dict[str, Effect]:
    """The effects of the head, the control and the injected slowdown, from ``log_ratios``.

    The slowdown was injected for the ``margin_of_run``, so it is judged with that margin. By
    default the margins are equal.
    """
    margins = dict.fromkeys(BASES, margin) | {"planted": margin_of_run or margin}
    return {
        role: effect(
            logs[role].dropna().to_numpy(),
            margins[role],
            ALPHA if role == "head" else CONTROL_ALPHA,
        )
        for role in BASES
    }


def proven(found: dict[str, Effect]) -> bool:
    """The A/A control did not move, and the injected slowdown was seen."""
    return found["control"].verdict == "equivalent" and found["planted"].verdict == "regressed"


def conclusion(found: dict[str, Effect], margin: float) -> str:
    """The verdict on the head, given the effects of all roles.

    It is the head's own where the controls held. Where they did not, a change still counts if the
    head's interval lies further from 0 than any end of the A/A control's, by more than the margin.
    Else it is "unproven".
    """
    head, control = found["head"], found["control"]
    if proven(found):
        return head.verdict
    beyond = max(abs(control.low), abs(control.high)) + np.log1p(margin)
    if head.low > beyond:
        return "regressed"
    return "improved" if head.high < -beyond else "unproven"


def verdicts(rows: pd.DataFrame, margin: float | None = None) -> pd.DataFrame:
    """A row for each cell: its names, verdict, base, head, ratio, low, high, pairs.

    Raises ``Incomparable`` if a cell's numbers are of different environments.
    """
    out = []
    for names, cell in rows.groupby(CELL, sort=False):
        one: dict[str, Any] = dict(zip(CELL, names, strict=True))
        for field in COMPARABLE:
            if cell[field].nunique(dropna=False) > 1:
                both = " and ".join(map(str, cell[field].unique()))
                raise Incomparable(f"{one['impl']} {one['metric']}: {field} differs, {both}")
        least = float(cell["margin"].iloc[0]) if margin is None else margin
        medians = cell.groupby("role")["value"].median()
        one["unit"] = cell["unit"].iloc[0]
        one |= medians.reindex(["base", "head"]).to_dict()
        if cell["pair"].isna().all():
            out.append(one | exact_verdict(one["metric"], one["base"], one["head"]))
            continue
        logs = log_ratios(cell)
        found = effects(logs, least, float(cell["margin"].iloc[0]))
        head = found["head"]
        p = p_value(logs["head"].dropna().to_numpy(), head.estimate, least)
        verdict = conclusion(found, least)
        times = {"ratio": np.exp(head.estimate), "low": np.exp(head.low), "high": np.exp(head.high)}
        pairs = cell["pair"].nunique()
        out.append(one | times | {"p": p, "pairs": pairs, "verdict": verdict})
    table = pd.DataFrame(out)
    return table if table.empty else discoveries(table)


def exact_verdict(metric: str, base: float, head: float) -> dict[str, object]:
    """The verdict on bytes, which are compared exactly, or on an error, whose budget is 1.

    An error beyond its budget is wrong; it is no change if the base was wrong too.
    """
    if np.isnan(base + head):  # the run was interrupted before it had both
        return {"verdict": "inconclusive"}
    if metric == "error":
        change = "right" if head <= 1 else "wrong" if base <= 1 else "wrong in both"
        return {"verdict": change}
    change = "regressed" if head > base else "improved" if head < base else "equivalent"
    return {"verdict": change, "ratio": head / base if base else np.nan}


def discoveries(table: pd.DataFrame) -> pd.DataFrame:
    """``table``, where a change of time that may be due to the number of cells is inconclusive."""
    if "p" not in table:
        return table
    timed = table["p"].notna()
    adjusted = pd.Series(np.nan, index=table.index)
    adjusted[timed] = stats.false_discovery_control(table.loc[timed, "p"].to_numpy())
    lost = table["verdict"].isin(["regressed", "improved"]) & (adjusted > FALSE_DISCOVERIES)
    return table.assign(verdict=table["verdict"].mask(lost, "inconclusive"))


def markdown(table: pd.DataFrame) -> str:
    """The verdicts as a Markdown table, for a terminal or a pull request."""
    lines = ["| impl | what | base | head | change | verdict |", "|:--|:--|--:|--:|--:|:--|"]
    for one in table.itertuples():
        is_other = one.dtype != table["dtype"].iloc[0]
        what = f"{one.metric} in {one.dtype}" if is_other else one.metric
        unit = "" if one.metric == "error" else f" {one.unit}"
        number = "{:,.0f}" if one.unit == "bytes" else "{:.3g}"
        base, head = (number.format(value) + unit for value in (one.base, one.head))
        cells = (one.impl, what, base, head, change_of(one), f"**{one.verdict}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def change_of(one: Any) -> str:
    """The change in a row of ``verdicts``: a time's with its interval, bytes; "" for an error."""
    if one.unit == "ms":
        return f"{_percent(one.ratio)} [{_percent(one.low)}, {_percent(one.high)}]"
    return f"{one.head - one.base:+,.0f} bytes" if one.unit == "bytes" else ""


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %" if 0 < ratio < np.inf else "?"
