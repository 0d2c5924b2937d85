"""Tidy rows to tables that a person reads, one for each level, workload, dtype and run."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from reports.analysis.selection import METRICS, RUN, cells, level_of, measured, run, title

MEBIBYTES = 2**20, "MiB"
# What is not in milliseconds: how many make one as shown, and what that is called.
UNITS = {
    **{"peak_memory": MEBIBYTES, "saved_memory": MEBIBYTES, "sent": MEBIBYTES},
    **{"reserved_memory": MEBIBYTES, "collectives": (1, "count")},
}
LEGEND = (
    "A cell has the median, its multiple of builtin, and its multiple of the reference: a copy of "
    "the logits, or the\nmatrix products alone (docs/how-we-measure.md). `error` is that of the "
    "gradients, relative to float64's. In\n`forward_backward_unit` the upstream gradient is "
    "exactly 1, in the other times it is not.\n`first_call` is that of forward and backward."
)
SHARDED = (
    "A number is that of the rank with the largest. `sent` is what it hands to collectives, "
    "`communication` their time,\neach waited for at once, `overlap` the share of it that passes "
    "while the rank computes, a 95 % interval."
)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each implementation, workload, dtype and run; a column for each metric."""
    keys = [*RUN, "commit_date", "workload", "dtype", "impl"]
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
        blocks.append(f"Failed while it was measured: {', '.join(failed)}. The run says why.")
    is_sharded = (rows["impl"].map(level_of) == "sharded").any()
    return "\n\n".join([*blocks, LEGEND, *([SHARDED] if is_sharded else [])])


def sections(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(title, the run in words, table) for each level, workload, dtype and run."""
    for cell in cells(rows):
        times = cell.loc[cell["unit"] == "ms", "n"]
        samples = f"{times.min():.0f} samples or more" if len(times) else "no times"
        yield title(cell), f"{run(cell)}, {samples}", comparison(cell)


def comparison(cell: pd.DataFrame) -> pd.DataFrame:
    """One cell's implementations, fastest first: values, and their multiples of two baselines."""
    table = measured(cell)
    values = table[METRICS].dropna(axis="columns", how="all")
    level = level_of(values.index[0])
    baselines = values.reindex([f"{level}.builtin", f"{level}.reference"])
    shown = pd.DataFrame(index=values.index)
    for metric, column in values.items():
        if metric == "error":
            shown[metric] = [f"{value:.1e}" if pd.notna(value) else "-" for value in column]
            continue
        if metric == "first_call":  # once, and so of no multiple
            shown["first_call (s)"] = [number(value) for value in column]
            continue
        if metric == "overlap":
            ends = zip(table["overlap_low"], table["overlap_high"], strict=True)
            shown["overlap (share)"] = [interval(low, high) for low, high in ends]
            continue
        scale, unit = UNITS.get(str(metric), (1, "ms"))
        multiples = [column / base for base in baselines[metric]]
        shown[f"{metric} ({unit})"] = [
            " ".join(f"{number(one):>6}" for one in numbers)
            for numbers in zip(column / scale, *multiples, strict=True)
        ]
    return shown


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
    """Two decimals, or one digit below 0.1."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.1g}"


def mebibytes(count: float) -> str:
    """The number alone, of bytes."""
    return number(count / 2**20)


def error(value: float) -> str:
    return f"{value:.1e}" if pd.notna(value) else "-"
