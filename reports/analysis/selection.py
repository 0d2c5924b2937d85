"""The rows that belong in a table: levels, runs, cells, and a cell's numbers side by side."""

import csv
import functools
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from reports.analysis.intervals import half_width
from reports.readers.schema import commit_dates

RUN = ["source", "machine", "device", "hardware", "commit", "torch", "threads", "allocator"]
METRICS = [
    *("forward", "backward", "forward_backward", "peak_memory", "saved_memory", "error"),
    *("sent", "collectives", "communication", "overlap"),  # of sharded losses
    *("forward_backward_unit", "launch", "reserved_memory", "first_call"),
]
# A table is sorted by the first of these that was measured.
SORTED_BY = ("forward_backward", "forward", "backward", "forward_backward_unit")
TOTAL = "total"  # the time of forward and backward together that a training step takes

WORKLOADS = Path(__file__).parents[2] / "benchmarks" / "workloads" / "workloads.csv"
Shape = tuple[int, int, int]  # tokens N, hidden D, vocabulary V


def kind_of_device(device: str) -> str:
    """``cpu`` or ``cuda``. A row names a GPU by its name, and ``cpu × 2`` is two ranks."""
    return "cpu" if device.partition(" × ")[0] == "cpu" else "cuda"


def level_of(impl: str) -> str:
    """The level, which is the part of the name before its first dot; empty if there is no dot."""
    return impl.partition(".")[0] if "." in impl else ""


@functools.cache
def shapes() -> dict[str, Shape]:
    """The shape of each workload of ``benchmarks``."""
    with WORKLOADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: (int(row["tokens"]), int(row["hidden"]), int(row["vocab"])) for row in rows
    }


def shape(workload: str) -> Shape | None:
    """(N, D, V) of ``NAME`` or ``NAME@TOKENS``; None if there is no such workload."""
    name, at, count = workload.partition(":")[0].partition("@")
    if name not in shapes() or (at and not count.isdecimal()):
        return None
    tokens, hidden, vocab = shapes()[name]
    return int(count or tokens), hidden, vocab


@functools.cache
def hardware_here() -> list[str]:
    """The CPU of this machine and its NVIDIA GPUs. Older files name no hardware."""
    from asv.util import get_cpu_info  # not on every machine that measures

    described = Path("/proc/driver/nvidia/gpus").glob("*/information")
    gpus = re.findall(r"Model:\s*(.*)", "\n".join(file.read_text() for file in described))
    return ["", get_cpu_info(), *gpus]


def measured_here(rows: pd.DataFrame) -> pd.Series:
    """Which rows were measured on this machine. Hosts can share a name, but not the hardware."""
    return (rows["machine"] == platform.node()) & rows["hardware"].isin(hardware_here())


def with_leads(rows: pd.DataFrame, page: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with a column ``leads``: whether the page leads with the row.

    It leads with what this machine measured. If this machine measured no row of the ``page``, all
    rows lead.
    """
    return rows.assign(leads=measured_here(rows) | (not measured_here(page).any()))


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last run of each implementation.

    In each place these are of the most recent commit in any file, and of an older commit if an
    implementation was not measured since.
    """
    where = ("machine", "device", "hardware", "threads", "allocator")
    place = [rows[name] for name in where]
    cell = [*place, rows["impl"].map(level_of), rows["workload"], rows["text"], rows["dtype"]]
    date = commit_dates(rows)
    latest = date.groupby([*cell, rows["impl"]], dropna=False).transform("max")
    last = (date == latest) | date.isna()
    run = [*cell, rows["commit"], rows["torch"]]
    return rows[last.groupby(run, dropna=False).transform("any")]


def of_last_commit(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the most recent commit, and the rows whose commit has no known date."""
    date = commit_dates(rows)
    return rows[(date == date.max()) | date.isna()]


def cells(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each level, workload, dtype and run. A table compares the rows of a cell."""
    keys = ["level", "workload", "text", "dtype", *RUN]
    levels = rows.assign(level=rows["impl"].map(level_of))
    return [cell for _, cell in levels.groupby(keys, sort=False, dropna=False)]


def title(cell: pd.DataFrame) -> str:
    of = cell.iloc[0]
    return " · ".join(filter(None, [of["level"], of["workload"], of["dtype"], of["device"]]))


def run(cell: pd.DataFrame) -> str:
    """Where a cell was measured, and which commit, in words."""
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


def pass_of_total(values: pd.DataFrame) -> str:
    """The pass whose time is ``TOTAL``, given a column of times for each pass."""
    both = values["forward_backward"].notna()
    is_unit = values.loc[both, "forward_backward_unit"].notna().all() and both.any()
    return "forward_backward_unit" if is_unit else "forward_backward"


def measured(cell: pd.DataFrame) -> pd.DataFrame:
    """The last numbers of a cell: a row for each implementation, the fastest first.

    The columns are:

    - ``METRICS``, in milliseconds and bytes.
    - ``TOTAL``: the time of forward and backward with an upstream gradient of 1, as in a training
      step. If some loss was not timed so, it is the time with another upstream gradient.
    - ``low``, ``high`` and ``noisy``: the interval of the time that sorts the table, and whether
      that time failed its checks.
    - ``overlap_low`` and ``overlap_high``: the interval of ``overlap``.
    """
    last = cell.drop_duplicates(["impl", "metric"], keep="last").set_index(["impl", "metric"])
    values = last["value"].unstack("metric").reindex(columns=METRICS)
    total = pass_of_total(values)
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
    ends = ["low", "high", "noisy", "overlap_low", "overlap_high"]
    return values.reindex(columns=[*METRICS, TOTAL, *ends])


def multiples(cell: pd.DataFrame, values: pd.DataFrame, base: str) -> pd.DataFrame:
    """Each number of a cell, divided by the same number of the implementation ``base``.

    All are nan if ``base`` was not measured.

    ``values`` is the result of ``measured``. A time is divided by the time of ``base`` in the same
    round, and the multiple is the median of these ratios. Where samples were not kept, or some were
    left out, it is the ratio of the medians.
    """
    columns = [*METRICS, TOTAL]
    ratios = values[columns] / values[columns].reindex([base]).iloc[0]
    for impl, metric, of_rounds in ratios_of_rounds(cell, base):
        ratios.loc[impl, metric] = np.median(of_rounds)
    return ratios.assign(**{TOTAL: ratios[pass_of_total(values)]})


def half_widths(cell: pd.DataFrame, values: pd.DataFrame, base: str, metric: str) -> pd.Series:
    """Half of the 95 % interval of each of ``multiples`` of a time, for any run on the machine.

    It is nan where samples were not kept, for ``base`` itself, and for the reference: on a CPU its
    time follows what neighbours do to the memory, more than a loss does.
    """
    wanted = pass_of_total(values) if metric == TOTAL else metric
    device = kind_of_device(cell["device"].iloc[0])
    found = {
        impl: half_width(list(of_rounds), device)
        for impl, name, of_rounds in ratios_of_rounds(cell, base)
        if name == wanted and impl != base and not impl.endswith(".reference")
    }
    return pd.Series(found, dtype=float).reindex(values.index)


def ratios_of_rounds(cell: pd.DataFrame, base: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield an implementation, a metric, and the ratio of its sample to the sample of ``base`` in
    each round. A metric is left out if the two do not have the same number of samples.
    """
    last = cell.drop_duplicates(["impl", "metric"], keep="last").set_index(["impl", "metric"])
    samples = last["samples"].map(np.asarray)
    for (impl, metric), taken in samples.items():
        of_base = samples.get((base, metric), np.empty(0))
        if metric in METRICS and len(taken) == len(of_base) > 0:
            yield impl, metric, taken / of_base
