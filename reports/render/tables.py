"""Tidy rows to tables that a person reads, one for each level, workload, dtype and run."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from reports.readers.results import commit_dates

RUN = ["source", "machine", "device", "hardware", "commit", "torch", "threads", "allocator"]
METRICS = [
    *("forward", "backward", "forward_backward", "peak_memory", "saved_memory", "error"),
    *("sent", "collectives", "communication", "overlap"),  # of sharded losses
    *("forward_backward_unit", "launch", "reserved_memory", "first_call"),
]
# The time that sorts a table: the first of these that was measured.
SORTED_BY = ("forward_backward", "forward", "backward", "forward_backward_unit")
TOTAL = "total"  # of the two metrics of forward and backward together, what a training step takes
MEBIBYTES = 2**20, "MiB"
# What is not in milliseconds: how many make one as shown, and what that is called.
UNITS = {
    **{"peak_memory": MEBIBYTES, "saved_memory": MEBIBYTES, "sent": MEBIBYTES},
    **{"reserved_memory": MEBIBYTES, "collectives": (1, "count")},
}
LEGEND = (
    "A cell has the median, its multiple of builtin, and its multiple of the reference, which is "
    "named limit\n(docs/how-we-measure.md says what it is). `error` is that of the gradients, "
    "relative to float64's. In\n`forward_backward_unit` the upstream gradient is exactly 1, in the "
    "other times it is not.\n`first_call` is that of forward and backward."
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


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run in which an implementation was measured last.

    That is the most recent commit measured in each place, and beside it an older one if it has an
    implementation that was not measured since.
    """
    where = ("source", "machine", "device", "hardware", "threads", "allocator")
    place = [rows[name] for name in where]
    cell = [*place, rows["impl"].map(level_of), rows["workload"], rows["dtype"]]
    date = commit_dates(rows)
    latest = date.groupby([*cell, rows["impl"]], dropna=False).transform("max")
    last = (date == latest) | date.isna()
    run = [*cell, rows["commit"], rows["torch"]]
    return rows[last.groupby(run, dropna=False).transform("any")]


def render(rows: pd.DataFrame) -> str:
    """All of ``rows`` as Markdown, which a terminal shows as well."""
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


def cells(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each level, workload, dtype and run: what one table compares."""
    keys = ["level", "workload", "dtype", *RUN]
    levels = rows.assign(level=rows["impl"].map(level_of))
    return [cell for _, cell in levels.groupby(keys, sort=False, dropna=False)]


def title(cell: pd.DataFrame) -> str:
    of = cell.iloc[0]
    return " · ".join(filter(None, [of["level"], of["workload"], of["dtype"], of["device"]]))


def run(cell: pd.DataFrame) -> str:
    """In words, where and of what a cell was measured."""
    of = cell.iloc[0]
    facts = [
        of["source"],
        f"commit {str(of['commit'])[:8] or 'unknown'}",
        of["machine"],
        of["hardware"],
        f"torch {of['torch'] or 'unknown'}",
        f"{of['threads']:.0f} threads" if pd.notna(of["threads"]) else "threads unknown",
        f"{of['allocator'] or 'unknown'} allocator",
    ]
    return ", ".join(filter(None, facts))


def level_of(impl: str) -> str:
    """The level: what stands before the name's first dot. Others' names may have none."""
    return impl.partition(".")[0] if "." in impl else ""


def measured(cell: pd.DataFrame) -> pd.DataFrame:
    """One cell's numbers, the last of each: a row for each implementation, the fastest first.

    Its columns are ``METRICS``, in milliseconds and bytes; ``TOTAL``, forward and backward with an
    upstream gradient of 1, as a training step has it, or of another where that alone was measured;
    and ``low`` and ``high``, the interval of the time that sorts: of ``TOTAL``, or of the pass that
    was timed. So are ``overlap_low`` and ``overlap_high``.
    """
    last = cell.drop_duplicates(["impl", "metric"], keep="last").set_index(["impl", "metric"])
    values = last["value"].unstack("metric").reindex(columns=METRICS)
    both = values["forward_backward"].notna()
    is_unit = values.loc[both, "forward_backward_unit"].notna().all() and both.any()
    total = "forward_backward_unit" if is_unit else "forward_backward"
    values[TOTAL] = values[total]
    times = [name for name in (total, *SORTED_BY) if values[name].any()]
    for end in ("low", "high"):
        ends = last[f"ci_{end}"].unstack("metric")
        if times:
            values[end] = ends[times[0]]
        if "overlap" in ends:
            values[f"overlap_{end}"] = ends["overlap"]
    if times:
        values = values.sort_values(times[0], kind="stable")
    ends = ["low", "high", "overlap_low", "overlap_high"]
    return values.reindex(columns=[*METRICS, TOTAL, *ends])


def comparison(cell: pd.DataFrame) -> pd.DataFrame:
    """One cell's implementations, fastest first: values, multiples of builtin and of the limit."""
    table = measured(cell)
    values = table[METRICS].dropna(axis="columns", how="all")
    level = level_of(values.index[0])
    baselines = values.reindex([f"{level}.builtin", f"{level}.limit"])
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
