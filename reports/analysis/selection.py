"""Which rows are shown and judged together: cells of a level, workload, dtype and run."""

import pandas as pd

from reports.readers.schema import commit_dates

RUN = ["source", "machine", "device", "hardware", "commit", "torch", "threads", "allocator"]
METRICS = [
    *("forward", "backward", "forward_backward", "peak_memory", "saved_memory", "error"),
    *("sent", "collectives", "communication", "overlap"),  # of sharded losses
    *("forward_backward_unit", "launch", "reserved_memory", "first_call"),
]
# The time that sorts a table: the first of these that was measured.
SORTED_BY = ("forward_backward", "forward", "backward", "forward_backward_unit")
TOTAL = "total"  # of the two metrics of forward and backward together, what a training step takes


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run in which an implementation was measured last.

    That is the most recent commit measured in each place, and beside it an older one if it has an
    implementation that was not measured since.
    """
    where = ("source", "machine", "device", "hardware", "threads", "allocator")
    place = [rows[name] for name in where]
    cell = [*place, rows["impl"].map(level_of), rows["workload"], rows["text"], rows["dtype"]]
    date = commit_dates(rows)
    latest = date.groupby([*cell, rows["impl"]], dropna=False).transform("max")
    last = (date == latest) | date.isna()
    run = [*cell, rows["commit"], rows["torch"]]
    return rows[last.groupby(run, dropna=False).transform("any")]


def cells(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each level, workload, dtype and run: what one table compares."""
    keys = ["level", "workload", "text", "dtype", *RUN]
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

    Its columns are:

    - ``METRICS``, in milliseconds and bytes;
    - ``TOTAL``, forward and backward with an upstream gradient of 1, as a training step has it, or
      of another where that alone was measured;
    - ``low`` and ``high``, the interval of the time that sorts: of ``TOTAL``, or of the pass that
      was timed, and ``noisy``, whether it failed its checks;
    - ``overlap_low`` and ``overlap_high``.
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
    noisy = last["noisy"].unstack("metric")
    values["noisy"] = noisy[times[0]].eq(True) if times else False
    if times:
        values = values.sort_values(times[0], kind="stable")
    ends = ["low", "high", "overlap_low", "overlap_high", "noisy"]
    return values.reindex(columns=[*METRICS, TOTAL, *ends])
