"""Everything that was measured on one page, which opens offline: no script, font or image."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from reports.analysis import selection as select
from reports.analysis import verdicts
from reports.analysis.change_points import ENVIRONMENT, QUANTITY, Change, changes, groups, series
from reports.analysis.selection import METRICS, TOTAL, level_of, measured, shape
from reports.readers.schema import commit_dates
from reports.render import plots, tables
from reports.render.commands import reproduce
from reports.render.tables import number

# What keeps the page small and quick. Beyond these it says what it leaves out.
SECTIONS = 30  # with a table
CHARTED = 8  # of those, with charts
HISTORIES = 12  # with a chart
SERIES = 200  # in which changes are looked for
POINTS = 10_000  # of them all
COMMITS = (10, 200)  # of each series: at least, at most
CHANGES = 100  # in the table
FLAGGED = 8  # changes with their samples
AROUND = 10  # commits on either side, whose values stand in for samples

MARGIN = 0.05  # the least change to mark

Context = dict[str, Any]


def render(
    rows: pd.DataFrame,
    notes: list[str],
    edge_cases: pd.DataFrame | None,
    pairs: pd.DataFrame | None,
) -> str:
    """The page, as HTML, of tidy rows, the matrix of edge cases and the raw pairs of ``compare``.

    ``notes`` are the lines about what was passed over. Numbers of different environments are in
    sections, charts and verdicts of their own.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"ms": number, "ratio": _ratio, "mib": _mib, "error": _error}
    environment.globals["interval"] = tables.interval
    names = (f"chart-{n}" for n in itertools.count(1))
    left_out: list[str] = []
    notes = list(notes)
    context = {
        **_sections(rows, _overwriting(edge_cases), names, left_out),
        **_histories(rows, names, left_out),
        "comparisons": [] if pairs is None else _comparisons(pairs, names, notes),
        "edge_cases": None if edge_cases is None else _matrix(edge_cases),
        "environments": _environments(rows),
        "notes": notes,
        "nan": np.nan,
        "light": plots.variables(dark=False),
        "dark": plots.variables(dark=True),
        "left_out": left_out,
    }
    return environment.get_template("page.html.jinja").render(context)


def charted(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The cells of which the page has sections, in its order: the largest workload first."""
    known = rows["impl"].map(level_of).ne("") & rows["metric"].isin(METRICS)
    cells = select.cells(select.newest(rows[known])) if known.any() else []
    return sorted(cells, key=_order)


def _order(cell: pd.DataFrame) -> tuple[object, ...]:
    of = cell.iloc[0]
    size = float(np.prod(shape(of["workload"]) or (0,), dtype=float))
    date = commit_dates(cell).iloc[0]
    newest = -date.timestamp() if pd.notna(date) else -np.inf
    exact_first = (of["dtype"] != "float32", of["dtype"])
    return (-size, of["workload"], exact_first, _place(of), of["level"], newest)


def _place(of: pd.Series) -> tuple[str, ...]:
    return tuple(str(of[name]) for name in ENVIRONMENT)


def picture(rows: pd.DataFrame) -> str:
    """The first cell's chart of time and memory, as an SVG file of its own; empty if none is."""
    names = iter(["picture"])
    for cell in charted(rows):
        for chart in _charts(measured(cell), select.title(cell), names):
            return plots.standalone(str(chart))
    return ""


def _sections(
    rows: pd.DataFrame, overwriting: set[str], names: Iterator[str], left_out: list[str]
) -> Context:
    """A table and charts for each cell, and for each workload and environment a verdict."""
    cells = charted(rows)
    if len(cells) > SECTIONS:
        left_out.append(
            f"{len(cells) - SECTIONS} of {len(cells)} tables, those of the smallest workloads, are "
            "not on this page; wide.csv has them."
        )
    if len(cells) > CHARTED:
        left_out.append(f"Only the first {CHARTED} tables have charts.")
    sections: list[Context] = []
    cards: dict[tuple[str, ...], Context] = {}
    judged = set()
    for n, cell in enumerate(cells[:SECTIONS]):
        table, of, title = measured(cell), cell.iloc[0], select.title(cell)
        section = {
            "id": f"cell-{n + 1}",
            "title": title,
            "run": select.run(cell),
            "is_sharded": of["level"] == "sharded",
            "rows": [_row(str(impl), one, table, cell) for impl, one in table.iterrows()],
            "untimed": list(table.index[table[["forward", TOTAL]].isna().all(axis=1)]),
            "charts": list(_charts(table, title, names)) if n < CHARTED else [],
        }
        sections.append(section)
        key = (of["workload"], of["dtype"], *_place(of))
        sentences = _verdict(table, overwriting)
        # The section of an older commit has what was not measured since, and no verdict.
        if (*key, of["level"]) in judged or not sentences:
            continue
        judged.add((*key, of["level"]))
        size = shape(of["workload"])
        card = {
            "title": title.partition(" · ")[2],
            "size": size and "{:,} tokens × {:,} hidden × {:,} vocabulary".format(*size),
            "run": section["run"],
            "levels": [],
        }
        level = {"level": of["level"], "section": section["id"], **sentences}
        cards.setdefault(key, card)["levels"].append(level)
    return {"sections": sections, "verdicts": list(cards.values())}


def _charts(table: pd.DataFrame, title: str, names: Iterator[str]) -> Iterator[Markup]:
    is_reference = table.index.str.endswith(".reference")
    if table.loc[~is_reference, [TOTAL, "peak_memory"]].notna().all(axis=1).any():
        yield Markup(plots.time_and_memory(table, next(names), title))
    if is_reference.any() and table.loc[~is_reference, TOTAL].notna().any():
        yield Markup(plots.multiples(table, next(names), title))


def _row(impl: str, one: pd.Series, table: pd.DataFrame, cell: pd.DataFrame) -> Context:
    of_builtin, of_reference = _multiples(impl, one, table)
    of = cell[cell["impl"] == impl].iloc[-1]
    return {
        "impl": impl,
        "value": one,
        "of_builtin": of_builtin,
        "of_reference": of_reference,
        "command": reproduce(of),
    }


def _multiples(impl: str, one: pd.Series, table: pd.DataFrame) -> list[pd.Series]:
    """Its numbers over the builtin's, and over the reference's."""
    level = level_of(impl)
    bases = table.reindex([f"{level}.builtin", f"{level}.reference"])[[*METRICS, TOTAL]]
    return [one[bases.columns] / base for _, base in bases.iterrows()]


def _verdict(table: pd.DataFrame, overwriting: set[str]) -> Context:
    """Which loss to take, and why. Empty if no time of both passes was measured.

    Of those whose medians are in the 95 % interval of the fastest, it is the one with the least
    memory.
    """
    right = table[~table.index.str.endswith(".reference")].dropna(subset=TOTAL)
    if right.empty:
        return {}
    fastest = right.iloc[0]
    within = right[TOTAL] <= fastest["high"]
    equal = right[within | (right.index == fastest.name)]
    lightest_first = equal.sort_values("peak_memory", kind="stable")
    taken = lightest_first.iloc[0] if pd.notna(lightest_first["peak_memory"].iloc[0]) else fastest
    impl = str(taken.name)
    of_builtin, of_reference = _multiples(impl, taken, table)

    def beside(metric: str) -> str:
        builtin, reference = of_builtin[metric], of_reference[metric]
        parts = [f"{_ratio(builtin)} × builtin"] if pd.notna(builtin) else []
        if metric == TOTAL and pd.notna(reference):
            parts.append(f"{_ratio(reference)} × the reference")
        return f" ({', '.join(parts)})" if parts else ""

    if len(right) == 1:
        why = "the only one that was timed"
    elif impl == fastest.name:
        why = f"the fastest of {len(right)}"
        if len(equal) > 1:
            why += f" ({len(equal) - 1} more are as fast within noise, and hold no less)"
    else:
        why = (
            f"as fast within noise as {fastest.name} ({number(fastest[TOTAL])} ms), "
            f"which holds {_mib(fastest['peak_memory'])} MiB"
        )
    numbers = f"at {number(taken[TOTAL])} ms forward and backward"
    numbers += beside(TOTAL)
    if pd.notna(taken["peak_memory"]):
        numbers += f", with a peak of {_mib(taken['peak_memory'])} MiB{beside('peak_memory')}"
    if pd.notna(taken["error"]):
        error = _error(taken["error"]).replace("-", "\N{NON-BREAKING HYPHEN}")
        numbers += f" and gradients within {error} of float64’s"
    lightest = right.sort_values(["peak_memory", TOTAL]).iloc[0]
    light = ""
    if lightest["peak_memory"] < taken["peak_memory"]:
        least, time = _mib(lightest["peak_memory"]), number(lightest[TOTAL])
        light = f"{lightest.name}, {least} MiB in {time} ms"
    return {
        "impl": impl,
        "why": f"{why}, {numbers}",
        "overwrites": impl in overwriting,
        "light": light,
    }


def _histories(rows: pd.DataFrame, names: Iterator[str], left_out: list[str]) -> Context:
    """Charts of what was measured at several commits, the changes in it, and their samples."""
    candidates = groups(_recent(rows, left_out))
    candidates.sort(key=lambda group: -group["commit"].nunique())
    ends = np.cumsum([group["impl"].nunique() for group in candidates])
    searched = [group for group, end in zip(candidates, ends, strict=True) if end <= SERIES]
    if len(searched) < len(candidates):
        left_out.append(
            f"Changes were looked for in {len(searched)} of {len(candidates)} histories, those of "
            "the most commits; `python -m reports regressions` looks in all of them."
        )
    found = [(group, changes(group, MARGIN)) for group in searched]
    found.sort(key=lambda one: -max(map(_weight, one[1]), default=-1.0))
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
        chart = Markup(plots.history(lines, marked, of["unit"], next(names), title))
        charts.append({"title": title, "place": _words(of), "chart": chart})
    pairs = [(one, group) for group, marked in found for one in marked]
    pairs.sort(key=lambda pair: -_weight(pair[0]))
    if len(pairs) > CHANGES:
        left_out.append(
            f"{CHANGES} of {len(pairs)} changes are listed, the largest; "
            "`python -m reports regressions` lists all that rose."
        )
    listed = []
    for n, (one, group) in enumerate(pairs[:CHANGES]):
        at = group[(group["impl"] == one.impl) & (group["commit"] == one.commit)].iloc[-1]
        scale, unit = (2**20, "MiB") if one.unit == "bytes" else (1, one.unit)
        place = [at[name] for name in ("workload", "dtype", "device")]
        if one.environment:
            state = "the environment’s"
        elif one.rise:
            state = f"mended at {one.mended[:10]}" if one.mended else "open"
        else:
            state = "fell"
        of = {
            "change": one,
            "what": f"{one.impl}, {at['metric'].replace('_', ' ')}",
            "place": " · ".join(filter(None, [*place, _words(at)])),
            "command": reproduce(at),
            "before": one.before / scale,
            "after": one.after / scale,
            "unit": unit,
            "state": state,
            "open": state == "open",
        }
        if n < FLAGGED:
            of |= _raw(one, group, scale, unit, names)
        listed.append(of)
    return {"histories": charts, "changes": listed}


def _recent(rows: pd.DataFrame, left_out: list[str]) -> pd.DataFrame:
    """The rows of histories with two commits or more, of each series the newest commits."""
    rows = rows[rows["value"].between(0, np.inf, inclusive="neither")]
    group = [rows[name] for name in [*ENVIRONMENT, *QUANTITY]]
    several = rows["commit"].groupby(group, dropna=False).transform("nunique") > 1
    rows = rows[several & ~rows["impl"].str.endswith(".reference")]
    if rows.empty:
        return rows
    one = [rows[name] for name in [*ENVIRONMENT, *QUANTITY, "impl"]]
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


def _weight(change: Change) -> float:
    """By what changes are put in order: the code's before the environment's, open ones first."""
    size = abs(float(np.log(change.after / change.before)))
    if change.environment:
        return size / 1e6
    return size if change.rise and not change.mended else size / 1e3


def _raw(
    one: Change, group: pd.DataFrame, scale: float, unit: str, names: Iterator[str]
) -> Context:
    """The samples at the commit of a change and at the one before it.

    Where none were kept, the values of the commits around it.
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
    chart = plots.samples(kept, unit, next(names), one.cell)
    return {"samples": _listed(kept), "chart": Markup(chart)}


def _comparisons(pairs: pd.DataFrame, names: Iterator[str], notes: list[str]) -> list[Context]:
    """Verdicts on two revisions, with the samples of each cell that is not plainly unchanged."""
    found = []
    keys = ["file", *verdicts.ENVIRONMENT, "base", "head", "workload"]
    for _, part in pairs.groupby(keys, dropna=False, sort=False):
        of = part.iloc[0]
        place = ", ".join(str(of[name]) for name in verdicts.ENVIRONMENT if pd.notna(of[name]))
        judged: list[Context] = []
        comparison = {
            "title": f"{of['base']} → {of['head']}, {of['workload']}",
            "place": f"{place}; {of['file']}",
            "margin": f"{100 * float(of['margin']):g} %",
            "rows": judged,
        }
        try:
            table = verdicts.verdicts(part)
        except (KeyError, ValueError) as error:  # of a run that was stopped in its first pair
            notes.append(f"passed over pairs of {comparison['title']}: not whole ({error!r})")
            continue
        for one in table.to_dict("records"):
            cell = part[(part["impl"] == one["impl"]) & (part["metric"] == one["metric"])]
            cell = cell[cell["dtype"] == one["dtype"]]
            name = f"{one['impl']}, {one['metric'].replace('_', ' ')}, {one['dtype']}"
            if one["unit"] == "bytes":
                one |= {"base": one["base"] / 2**20, "head": one["head"] / 2**20, "unit": "MiB"}
            if one["unit"] == "ms" and one["verdict"] != "equivalent":
                kept = {str(role): list(values) for role, values in cell.groupby("role")["value"]}
                chart = Markup(plots.samples(kept, "ms", next(names), name))
                one |= {"samples": _listed(kept), "chart": chart}
            judged.append(one | {"what": name})
        found.append(comparison)
    return found


def _listed(groups: Mapping[str, Sequence[float]]) -> dict[str, str]:
    return {name: ", ".join(f"{value:.4g}" for value in values) for name, values in groups.items()}


def _overwriting(edge_cases: pd.DataFrame | None) -> set[str]:
    """Those that were seen to overwrite their input, by every name that a table may have."""
    if edge_cases is None:
        return set()
    found = edge_cases.loc[(edge_cases == "overwritten").any(axis=1), "impl"]
    return set(found.str.partition(" (")[0])  # a file may follow


def merged(matrices: list[pd.DataFrame]) -> pd.DataFrame | None:
    """The edge cases of several files. Where they differ, a loss has a row for each file."""
    if not matrices:
        return None
    rows = pd.concat(matrices).fillna("")
    rows = rows.drop_duplicates([name for name in rows if name != "file"])
    differing = rows["impl"].duplicated(keep=False)
    named = rows["impl"] + " (" + rows["file"] + ")"
    return rows.assign(impl=rows["impl"].mask(differing, named)).drop(columns="file")


def _matrix(edge_cases: pd.DataFrame) -> Context:
    """The edge_cases, and in which cells one parts from the builtin of its level."""
    cases = [name for name in edge_cases if name != "impl"]
    builtins = edge_cases.set_index("impl")
    rows = []
    for one in edge_cases.to_dict("records"):
        builtin = f"{level_of(one['impl'])}.builtin"
        usual = builtins.loc[builtin] if builtin in builtins.index else None
        cells = [
            (one[case], usual is not None and one[case] not in (usual[case], "not an option"))
            for case in cases
        ]
        rows.append((one["impl"], cells))
    return {"cases": cases, "rows": rows}


def _environments(rows: pd.DataFrame) -> list[Context]:
    """Where numbers came from: what makes them comparable, and how many there are."""
    found = []
    for _, group in rows.groupby(ENVIRONMENT, dropna=False, sort=False):
        dates = sorted(date[:10] for date in group["commit_date"].unique() if date)
        of = group.iloc[0]
        found.append(
            {name: of[name] for name in ENVIRONMENT}
            | {"threads": f"{of['threads']:.0f}" if pd.notna(of["threads"]) else "unknown"}
            | {"commits": group["commit"].nunique(), "numbers": len(group)}
            | {"dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "unknown"}
            | {"impls": sorted(group["impl"].unique())}
        )
    return found


def _words(of: pd.Series) -> str:
    """The environment of a number, in words."""
    threads = f"{of['threads']:.0f} threads" if pd.notna(of["threads"]) else ""
    torch, allocator = of["torch"] and f"torch {of['torch']}", of["allocator"]
    facts = [of["source"], of["machine"], of["hardware"], torch, threads]
    facts += [allocator and f"{allocator} allocator"]
    return ", ".join(filter(None, facts))


def _ratio(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.1g}"


def _mib(value: float) -> str:
    return number(value / 2**20)


def _error(value: float) -> str:
    return f"{value:.1e}" if pd.notna(value) else "-"
