"""The page's sections Verdict and Cost: which loss to take, and a table and charts of each cell."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from reports.analysis.selection import (
    METRICS,
    TOTAL,
    cells,
    level_of,
    measured,
    multiples,
    newest,
    run,
    shape,
    title,
)
from reports.analysis.series import SERIES_ENVIRONMENT
from reports.commands import reproduce
from reports.readers.schema import commit_dates
from reports.render.charts import plots
from reports.render.tables import error, mebibytes, number, ratio

# More would make the page large and slow. The page says what it leaves out.
SECTIONS = 30  # with a table
CHARTED = 8  # of these sections, with charts

Context = dict[str, Any]


def charted(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The cells that have sections on the page: those that lead, then the others.

    Of both, the largest workload comes first.
    """
    known = rows["impl"].map(level_of).ne("") & rows["metric"].isin(METRICS)
    return sorted(cells(newest(rows[known])), key=_order) if known.any() else []


def _order(cell: pd.DataFrame) -> tuple[object, ...]:
    of = cell.iloc[0]
    size = float(np.prod(shape(of["workload"]) or (0,), dtype=float))
    date = commit_dates(cell).iloc[0]
    newest = -date.timestamp() if pd.notna(date) else -np.inf
    exact_first = (of["dtype"] != "float32", of["dtype"])
    return (not of["leads"], -size, of["workload"], exact_first, _place(of), of["level"], newest)


def _place(of: pd.Series) -> tuple[str, ...]:
    return tuple(str(of[name]) for name in SERIES_ENVIRONMENT)


def sections(
    rows: pd.DataFrame, overwriting: set[str], idents: Iterator[str], left_out: list[str]
) -> Context:
    """Tables and charts of each cell, and a verdict for each workload and environment."""
    chosen = charted(rows)
    if len(chosen) > SECTIONS:
        left_out.append(
            f"{len(chosen) - SECTIONS} of {len(chosen)} tables are not on this page, which begins "
            "with this machine and the largest workloads; wide.csv has them."
        )
    if len(chosen) > CHARTED:
        left_out.append(f"Only the first {CHARTED} tables have charts.")
    shown: list[Context] = []
    cards: dict[tuple[str, ...], Context] = {}
    judged = set()
    for n, cell in enumerate(chosen[:SECTIONS]):
        table, of, name = measured(cell), cell.iloc[0], title(cell)
        bases = [f"{of['level']}.{base}" for base in ("builtin", "reference")]
        of_builtin, of_reference = (multiples(cell, table, base) for base in bases)
        section = {
            "id": f"cell-{n + 1}",
            "title": name,
            "run": run(cell),
            "leads": of["leads"],
            "is_sharded": of["level"] == "sharded",
            "rows": [
                {
                    "impl": str(impl),
                    "value": one,
                    "of_builtin": of_builtin.loc[impl],
                    "of_reference": of_reference.loc[impl],
                    "command": reproduce(cell[cell["impl"] == impl].iloc[-1]),
                }
                for impl, one in table.iterrows()
            ],
            "untimed": list(table.index[table[["forward", TOTAL]].isna().all(axis=1)]),
            "charts": list(charts(cell, idents)) if n < CHARTED else [],
        }
        shown.append(section)
        key = (of["workload"], of["text"], of["dtype"], *_place(of))
        sentences = _verdict(table, of_builtin, of_reference, overwriting)
        # The section of an older commit has losses that were not measured since. It has no verdict.
        if (*key, of["level"]) in judged or not sentences:
            continue
        judged.add((*key, of["level"]))
        size = shape(of["workload"])
        card = {
            "title": name.partition(" · ")[2],
            "size": size and "{:,} tokens × {:,} hidden × {:,} vocabulary".format(*size),
            "run": section["run"],
            "leads": of["leads"],
            "levels": [],
        }
        level = {"level": of["level"], "section": section["id"], **sentences}
        cards.setdefault(key, card)["levels"].append(level)
    return {"sections": shown, "verdicts": list(cards.values())}


def charts(cell: pd.DataFrame, idents: Iterator[str]) -> Iterator[Markup]:
    table, name = measured(cell), title(cell)
    is_reference = table.index.str.endswith(".reference")
    if table.loc[~is_reference, [TOTAL, "peak_memory"]].notna().all(axis=1).any():
        yield Markup(plots.time_and_memory(table, next(idents), name))
    if is_reference.any() and table.loc[~is_reference, TOTAL].notna().any():
        ratios = multiples(cell, table, f"{cell['level'].iloc[0]}.reference")
        yield Markup(plots.multiples(ratios[~is_reference], next(idents), name))


def _verdict(
    table: pd.DataFrame,
    of_builtin: pd.DataFrame,
    of_reference: pd.DataFrame,
    overwriting: set[str],
) -> Context:
    """Which loss to take, and why. Empty if no time of both passes was measured.

    It is the loss with the least memory among the losses whose median is within the 95 % interval
    of the fastest loss.
    """
    right = table[~table.index.str.endswith(".reference")].dropna(subset=TOTAL)
    right = right[~right["noisy"]]  # a noisy time is never called the fastest
    if right.empty:
        return {}
    fastest = right.iloc[0]
    within = right[TOTAL] <= fastest["high"]
    equal = right[within | (right.index == fastest.name)]
    lightest_first = equal.sort_values("peak_memory", kind="stable")
    taken = lightest_first.iloc[0] if pd.notna(lightest_first["peak_memory"].iloc[0]) else fastest
    impl = str(taken.name)

    def quotients(metric: str) -> str:
        builtin, reference = of_builtin.loc[impl, metric], of_reference.loc[impl, metric]
        parts = [f"{ratio(builtin)} × builtin"] if pd.notna(builtin) else []
        if metric == TOTAL and pd.notna(reference):
            parts.append(f"{ratio(reference)} × the reference")
        return f" ({', '.join(parts)})" if parts else ""

    if len(right) == 1:
        why = "the only one that was timed"
    elif impl == fastest.name:
        why = f"the fastest of {len(right)}"
        set_aside = [str(name) for name in equal.index if name != impl]
        if set_aside:
            why += f" (as fast within noise, and no lighter: {', '.join(set_aside)})"
    else:
        why = (
            f"as fast within noise as {fastest.name} ({number(fastest[TOTAL])} ms), "
            f"which holds {mebibytes(fastest['peak_memory'])} MiB"
        )
    numbers = f"at {number(taken[TOTAL])} ms forward and backward"
    numbers += quotients(TOTAL)
    if pd.notna(taken["peak_memory"]):
        numbers += (
            f", with a peak of {mebibytes(taken['peak_memory'])} MiB{quotients('peak_memory')}"
        )
    if pd.notna(taken["error"]):
        within = error(taken["error"]).replace("-", "\N{NON-BREAKING HYPHEN}")
        numbers += f" and gradients within {within} of float64’s"
    lightest = right.sort_values(["peak_memory", TOTAL]).iloc[0]
    light = ""
    if lightest["peak_memory"] < taken["peak_memory"]:
        least, time = mebibytes(lightest["peak_memory"]), number(lightest[TOTAL])
        light = f"{lightest.name}, {least} MiB in {time} ms"
    return {
        "impl": impl,
        "why": f"{why}, {numbers}",
        "overwrites": impl in overwriting,
        "light": light,
    }
