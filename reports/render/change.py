"""The page's section Change: histories with their changes, and comparisons of two revisions."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from reports.analysis import verdicts
from reports.analysis.change_points import Change, changes
from reports.analysis.series import QUANTITY, SERIES_ENVIRONMENT, groups, series
from reports.commands import reproduce
from reports.readers.schema import commit_dates
from reports.render.by_commit import amount, quantity, state
from reports.render.charts import plots

# More would make the page large and slow. The page says what it leaves out.
HISTORIES = 12  # with a chart
SERIES = 200  # in which changes are looked for
POINTS = 10_000  # of all series
COMMITS = (10, 200)  # of each series: at least, at most
CHANGES = 50  # in the tables, each over all dtypes and workloads
FLAGGED = 8  # changes with their samples
AROUND = 10  # commits on either side, whose values are shown if there are no samples

MARGIN = 0.05  # smaller changes are not marked
ROLES = {"base": "base", "head": "head"}  # how the page names each role
ROLES |= {"control": "A/A control", "planted": "injected slowdown"}

Context = dict[str, Any]


def histories(rows: pd.DataFrame, idents: Iterator[str], left_out: list[str]) -> Context:
    """Charts of all numbers with several commits, their changes, and the samples of the changes."""
    candidates = groups(_recent(rows, left_out))
    candidates.sort(key=lambda group: (not _leads(group), -group["commit"].nunique()))
    ends = np.cumsum([group["impl"].nunique() for group in candidates])
    searched = [group for group, end in zip(candidates, ends, strict=True) if end <= SERIES]
    if len(searched) < len(candidates):
        left_out.append(
            f"Changes were looked for in {len(searched)} of {len(candidates)} histories, those of "
            "the most commits; `python -m reports regressions` looks in all of them."
        )
    found = list(zip(searched, changes(searched, MARGIN), strict=True))
    found.sort(key=lambda one: (not _leads(one[0]), -max(map(_weight, one[1]), default=-1.0)))
    if len(candidates) > HISTORIES:
        left_out.append(
            f"{HISTORIES} of {len(candidates)} histories are drawn, of the largest changes; "
            "tidy.csv has them all."
        )
    charts = []
    for group, marked in found[:HISTORIES]:
        of = group.iloc[0]
        parts = [of[name] for name in ("metric", "workload", "dtype", "device")]
        title = " · ".join(filter(None, map(str, parts)))
        lines = series(group)
        chart = Markup(plots.history(lines, marked, of["unit"], next(idents), title))
        charts.append({"title": title, "place": _words(of), "chart": chart, "leads": of["leads"]})
    pairs = [(one, group) for group, marked in found for one in marked]
    pairs.sort(key=lambda pair: (not _leads(pair[1]), -_weight(pair[0])))
    alike = defaultdict(list)
    for one, group in pairs:
        alike[quantity(one), one.is_small, _words(group.iloc[0])].append((one, group))
    if len(alike) > CHANGES:
        left_out.append(
            f"{CHANGES} of {len(alike)} changes are listed, the largest; "
            "`python -m reports regressions --all` lists all that rose."
        )
    listed = []
    for n, ((_, is_small, environment), like) in enumerate([*alike.items()][:CHANGES]):
        one, group = like[0]
        at = group[(group["impl"] == one.impl) & (group["commit"] == one.commit)].iloc[-1]
        scale, unit = (2**20, "MiB") if one.unit == "bytes" else (1, one.unit)
        place = [one.workload, one.dtype, one.device, environment]
        place += [f"and {len(like) - 1} more like it"] if len(like) > 1 else []
        changed = [change for change, _ in like]
        is_open = one.rise and not all(change.fixed for change in changed)
        of = {
            "change": one,
            "what": f"{one.impl}, {one.metric.replace('_', ' ')}",
            "place": " · ".join(filter(None, place)),
            "command": reproduce(at),
            "before": one.before / scale,
            "after": one.after / scale,
            "unit": unit,
            "amount": amount(changed),
            "state": "the environment’s" if one.environment else state(changed),
            "open": is_open and not one.environment and not is_small,
            "leads": at["leads"],
        }
        if n < FLAGGED:
            of |= _raw(one, group, scale, unit, idents)
        listed.append(of)
    return {"histories": charts, "changes": listed}


def _recent(rows: pd.DataFrame, left_out: list[str]) -> pd.DataFrame:
    """The newest commits of each series, from histories with two commits or more."""
    rows = rows[rows["value"].between(0, np.inf, inclusive="neither")]
    group = [rows[name] for name in [*SERIES_ENVIRONMENT, *QUANTITY]]
    several = rows["commit"].groupby(group, dropna=False).transform("nunique") > 1
    rows = rows[several & ~rows["impl"].str.endswith(".reference")]
    if rows.empty:
        return rows
    one = [rows[name] for name in [*SERIES_ENVIRONMENT, *QUANTITY, "impl"]]
    dates = commit_dates(rows)
    age = dates.groupby(one, dropna=False).rank(method="dense", ascending=False)
    in_file = rows.groupby(one, dropna=False).cumcount(ascending=False) + 1
    count = rows.groupby(one, dropna=False).ngroups
    least, most = COMMITS
    commits = max(least, min(most, POINTS // min(count, SERIES)))
    old = age.fillna(in_file) > commits
    if old.any():
        left_out.append(
            f"Histories begin {commits} commits back: {old.sum():,} older numbers are not in their "
            "charts; `python -m reports regressions` looks at all of them."
        )
    return rows[~old]


def _leads(group: pd.DataFrame) -> bool:
    return bool(group["leads"].iloc[0])


def _weight(change: Change) -> float:
    """The sort key of changes: open regressions, then other changes, then the environment's.

    Small changes of bytes are among the other changes.
    """
    size = min(change.size, 1e3)
    if change.environment:
        return size / 1e12
    is_open = change.rise and not change.fixed
    return size if is_open and not change.is_small else size / 1e6


def _raw(
    one: Change, group: pd.DataFrame, scale: float, unit: str, idents: Iterator[str]
) -> Context:
    """The samples at the commit of a change and at the commit before it.

    If there are no samples: the values of the commits around the change.
    """
    mine = group[group["impl"] == one.impl]
    kept = {
        commit[:10]: [
            sample for row in mine.loc[mine["commit"] == commit, "samples"] for sample in row
        ]
        for commit in (one.last, one.commit)
    }
    if not all(kept.values()):
        values = series(mine)[one.impl] / scale
        at = values.index.get_loc(one.commit)
        kept = {
            f"up to {one.last[:10]}": list(values[max(0, at - AROUND) : at]),
            f"from {one.commit[:10]}": list(values[at : at + AROUND]),
        }
    chart = plots.samples(kept, unit, next(idents), one.cell)
    return {"samples": _listed(kept), "chart": Markup(chart)}


def comparisons(pairs: pd.DataFrame, idents: Iterator[str], notes: list[str]) -> list[Context]:
    """Verdicts on base and head. A time that is not equivalent has its samples too."""
    found: list[Context] = []
    keys = ["file", *verdicts.COMPARABLE, "base", "head", "workload"]
    for _, part in pairs.groupby(keys, dropna=False, sort=False):
        of = part.iloc[0]
        place = ", ".join(of[name] for name in verdicts.COMPARABLE if of[name])
        judged: list[Context] = []
        comparison = {
            "id": f"comparison-{len(found) + 1}",
            "title": f"{of['base']} → {of['head']}, {of['workload']}",
            "place": f"{place}; {of['file']}",
            "leads": of["leads"],
            "margin": f"{100 * float(of['margin']):g} %",
            "rows": judged,
        }
        try:
            table = verdicts.verdicts(part)
        except (KeyError, ValueError) as error:  # the run was stopped in its first pair
            notes.append(f"passed over pairs of {comparison['title']}: not whole ({error!r})")
            continue
        for one in table.to_dict("records"):
            cell = part[(part["impl"] == one["impl"]) & (part["metric"] == one["metric"])]
            cell = cell[cell["dtype"] == one["dtype"]]
            name = f"{one['impl']}, {one['metric'].replace('_', ' ')}, {one['dtype']}"
            if one["unit"] == "bytes":
                one |= {"base": one["base"] / 2**20, "head": one["head"] / 2**20, "unit": "MiB"}
            if one["unit"] == "ms" and one["verdict"] != "equivalent":
                kept = {ROLES[role]: list(values) for role, values in cell.groupby("role")["value"]}
                chart = Markup(plots.samples(kept, "ms", next(idents), name))
                one |= {"samples": _listed(kept), "chart": chart}
            judged.append(one | {"what": name})
        found.append(comparison)
    return found


def _listed(groups: Mapping[str, Sequence[float]]) -> dict[str, str]:
    return {name: ", ".join(f"{value:.4g}" for value in values) for name, values in groups.items()}


def _words(of: pd.Series) -> str:
    """The environment of a number, in words."""
    threads = f"{of['threads']:.0f} threads" if pd.notna(of["threads"]) else ""
    torch, allocator = of["torch"] and f"torch {of['torch']}", of["allocator"]
    facts = [of["source"], of["machine"], of["hardware"], torch, threads]
    facts += [allocator and f"{allocator} allocator"]
    return ", ".join(filter(None, facts))
