"""All that was measured on one page, which opens offline: no script, font or image."""

import itertools
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from reports.analysis.selection import level_of, with_leads
from reports.analysis.series import SERIES_ENVIRONMENT
from reports.render import change, cost, tables
from reports.render.charts import svg


def render(
    rows: pd.DataFrame,
    notes: list[str],
    edge_cases: pd.DataFrame | None,
    pairs: pd.DataFrame | None,
) -> str:
    """The page, as HTML, of tidy rows, the matrix of edge cases and the raw pairs of ``compare``.

    ``notes`` are the lines about files and cells that were passed over. Each environment has its
    own sections, charts and verdicts. Those of this machine come first, the others are folded.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "ms": tables.number,
        "ratio": tables.ratio,
        "mib": tables.mebibytes,
        "error": tables.error,
    }
    environment.globals["interval"] = tables.interval
    idents = (f"chart-{n}" for n in itertools.count(1))
    left_out: list[str] = []
    notes = list(notes)
    rows = with_leads(rows, rows)
    context = {
        **cost.sections(rows, _overwriting(edge_cases), idents, left_out),
        **change.histories(rows, idents, left_out),
        "comparisons": []
        if pairs is None
        else change.comparisons(with_leads(pairs, rows), idents, notes),
        "edge_cases": None if edge_cases is None else _matrix(edge_cases),
        "environments": _environments(rows),
        "notes": notes,
        "nan": np.nan,
        "light": svg.variables(dark=False),
        "dark": svg.variables(dark=True),
        "left_out": left_out,
    }
    return environment.get_template("page.html.jinja").render(context)


def picture(rows: pd.DataFrame) -> str:
    """The chart of time and memory of the first cell, as an SVG file; empty if there is no cell."""
    idents = iter(["picture"])
    for cell in cost.charted(with_leads(rows, rows)):
        for chart in cost.charts(cell, idents):
            return svg.standalone(str(chart))
    return ""


def _overwriting(edge_cases: pd.DataFrame | None) -> set[str]:
    """The losses that were seen to overwrite their input."""
    if edge_cases is None:
        return set()
    found = edge_cases.loc[(edge_cases == "overwritten").any(axis=1), "impl"]
    return {name.partition(" (")[0] for name in found}  # the name of a file may follow


def merged(matrices: list[pd.DataFrame]) -> pd.DataFrame | None:
    """The edge cases of several files. Where they differ, a loss has a row for each file."""
    if not matrices:
        return None
    rows = pd.concat(matrices).fillna("")
    rows = rows.drop_duplicates([name for name in rows if name != "file"])
    differing = rows["impl"].duplicated(keep=False)
    named = rows["impl"] + " (" + rows["file"] + ")"
    return rows.assign(impl=rows["impl"].mask(differing, named)).drop(columns="file")


def _matrix(edge_cases: pd.DataFrame) -> dict[str, Any]:
    """The edge cases of each loss, and whether each differs from the builtin of its level."""
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


def _environments(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The environments that numbers came from, and how many numbers each has."""
    found = []
    leading_first = rows.sort_values("leads", ascending=False, kind="stable")
    for _, group in leading_first.groupby(SERIES_ENVIRONMENT, dropna=False, sort=False):
        dates = sorted(date[:10] for date in group["commit_date"].unique() if date)
        of = group.iloc[0]
        found.append(
            {name: of[name] for name in SERIES_ENVIRONMENT}
            | {"threads": f"{of['threads']:.0f}" if pd.notna(of["threads"]) else "unknown"}
            | {"commits": group["commit"].nunique(), "numbers": len(group)}
            | {"dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "unknown"}
            | {"impls": sorted(group["impl"].unique())}
        )
    return found
