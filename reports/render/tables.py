"""Tidy rows as Markdown tables: a table for each level, workload, dtype and run."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from reports.analysis.selection import (
    METRICS,
    RUN,
    cells,
    level_of,
    measured,
    multiples,
    run,
    title,
)

MEBIBYTES = 2**20, "MiB"
# For metrics that are not in milliseconds: the divisor, and the unit that a table shows.
DISPLAY_UNITS = {
    **{"peak_memory": MEBIBYTES, "saved_memory": MEBIBYTES, "sent": MEBIBYTES},
    **{"reserved_memory": MEBIBYTES, "collectives": (1, "count")},
}
LEGEND = (
    "A cell has the median, its multiple of builtin, and its multiple of the reference. The "
    "reference is the work that\nno loss can avoid, timed in the same rounds: from logits, reading "
    "them (forward) or copying them (backward, or both);\nelse the matrix products "
    "(docs/how-we-measure.md). The multiple of a time is the median of the ratios within rounds.\n"
    "`error` is the error of the gradients, relative to float64's. In "
    "`forward_backward_unit` the upstream gradient is exactly 1; in the other times it is not. "
    "`first_call` is\nthe first forward and backward."
)
SHARDED = (
    "A number is of the rank with the largest number. `sent` is what a rank hands to collectives. "
    "`communication` is their\ntime if each is waited for at once. `overlap` is the share of this "
    "time that passes while the rank computes, as a 95 %\ninterval."
)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each implementation, workload, dtype and run; a column for each metric."""
    keys = [*RUN, "commit_date", "workload", "text", "dtype", "impl"]
    table = rows.groupby([*keys, "metric"], dropna=False)["value"].last().unstack("metric")
    return table.reindex(columns=METRICS).reset_index()


def show(rows: pd.DataFrame) -> None:
    """Print ``rows`` for a terminal; as Markdown where rich is not installed."""
    try:
        from reports.render import terminal
    except ImportError:
        print(render(rows))
    else:
        terminal.show(rows)


def render(rows: pd.DataFrame) -> str:
    """All of ``rows`` as Markdown."""
    blocks = [
        f"### {title}\n\n{run}\n\n"
        + table.to_markdown(colalign=("left", *["right"] * table.shape[1]))
        for title, run, table in sections(rows)
    ]
    failed = sorted(rows.loc[rows["metric"] == "failed", "impl"].unique())
    if failed:
        blocks.append(
            f"Failed while measured: {', '.join(failed)}. The output of the run has the reason."
        )
    is_sharded = (rows["impl"].map(level_of) == "sharded").any()
    return "\n\n".join([*blocks, LEGEND, *([SHARDED] if is_sharded else [])])


def sections(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(title, the run in words, table) for each level, workload, dtype and run."""
    for cell in cells(rows):
        times = cell.loc[cell["unit"] == "ms", "n"]
        samples = f"{times.min():.0f} samples or more" if len(times) else "no times"
        yield title(cell), f"{run(cell)}, {samples}", comparison(cell)


def comparison(cell: pd.DataFrame) -> pd.DataFrame:
    """A row for each implementation of a cell, the fastest first: values and their multiples."""
    table = measured(cell)
    values = table[METRICS].dropna(axis="columns", how="all")
    level = level_of(values.index[0])
    of_both = [multiples(cell, table, f"{level}.{base}") for base in ("builtin", "reference")]
    shown = pd.DataFrame(index=values.index)
    for metric, column in values.items():
        if metric == "error":
            shown[metric] = column.map(error)
            continue
        if metric == "first_call":  # once, and so of no multiple
            shown["first_call (s)"] = [number(value) for value in column]
            continue
        if metric == "overlap":
            ends = zip(table["overlap_low"], table["overlap_high"], strict=True)
            shown["overlap (share)"] = [interval(low, high) for low, high in ends]
            continue
        scale, unit = DISPLAY_UNITS.get(str(metric), (1, "ms"))
        ratios = [of_base[metric] for of_base in of_both]
        shown[f"{metric} ({unit})"] = [
            " ".join(f"{number(one):>6}" for one in numbers)
            for numbers in zip(column / scale, *ratios, strict=True)
        ]
    return shown.rename(index={impl: f"{impl} (noisy)" for impl in table.index[table["noisy"]]})


def interval(low: float, high: float) -> str:
    """Both ends of a share; a dash if there are none.

    An interval that is wider than all shares there can be, from 0 to 1, says nothing.
    """
    if pd.isna(low):
        return "-"
    return f"{low:.2f} to {high:.2f}" if high - low < 1 else "not measurable here"


def edge_case_table(matrix: pd.DataFrame) -> str:
    """What each implementation does in edge cases, as Markdown: a row for each case."""
    return str(matrix.set_index("impl").T.rename_axis("case").to_markdown())


def number(value: float) -> str:
    """Two decimals, or none from a hundred on."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def ratio(value: float) -> str:
    """Two decimals, or one digit below a tenth."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.1g}"


def mebibytes(value: float) -> str:
    return number(value / 2**20)


def error(value: float) -> str:
    return f"{value:.1e}" if pd.notna(value) else "-"
