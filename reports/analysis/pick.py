"""The fastest right loss that fits in memory, from measured times and measured or planned peaks."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.analysis.selection import (
    TOTAL,
    kind_of_device,
    level_of,
    measured,
    newest,
    run,
    shape,
    shapes,
)
from reports.analysis.series import SERIES_ENVIRONMENT, in_order

SHAPE = ["tokens", "hidden", "vocab"]
PLANNED = [*SHAPE, "dtype", "device", "torch", "impl", "peak_memory"]  # columns read of a plan


class NoPick(LookupError):
    """No loss can be named. The message says why, and what would help."""


@dataclass(frozen=True)
class Pick:
    """The answer for one environment and dtype."""

    dtype: str
    run: str  # where it was timed, in words
    impl: str
    milliseconds: float  # of forward and backward, at ``timed``
    timed: str  # a workload
    peak: float  # bytes that forward and backward allocate in addition to their arguments
    error: float  # of the gradients, relative
    planned: str = ""  # the torch of the plan that has the peak; empty: the peak was measured


def pick(
    rows: pd.DataFrame,
    plans: pd.DataFrame,
    workload: str,
    memory: float,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Pick]:
    """The fastest loss of each environment and dtype whose peak is at most ``memory`` bytes.

    Only losses of level linear are candidates, as their peaks can be compared. A loss whose
    gradients are wrong has no times, so it is no candidate. If the workload was not measured, peaks
    come from ``plans`` (rows of ``python -m benchmarks plan``), and times are those of the nearest
    size that was timed. Raises ``NoPick``.
    """
    if shape(workload) is None and workload not in set(rows["workload"]):
        near = difflib.get_close_matches(workload, shapes(), n=3, cutoff=0.4) or list(shapes())
        raise NoPick(f"no workload {workload!r}; did you mean {', '.join(near)}?")
    wanted = (rows["impl"].map(level_of) == "linear") & ~rows["impl"].str.endswith(".reference")
    if device is not None:
        wanted &= rows["device"].map(kind_of_device) == device
    if dtype is not None:
        wanted &= rows["dtype"] == dtype
    asked = (f" in {dtype}" if dtype else "") + (f" on {device}" if device else "")
    if not wanted.any():
        raise NoPick(f"nothing{asked} was measured at level linear")
    chosen = in_order(newest(rows[wanted]))
    groups = [group for _, group in chosen.groupby([*SERIES_ENVIRONMENT, "dtype"], dropna=False)]
    candidates = [found for group in groups for found in _measured(group, workload)]
    if not candidates:
        candidates = [found for group in groups for found in _planned(group, plans, workload)]
    if not candidates and shape(workload) is None:
        raise NoPick(f"{workload} was not measured{asked} at level linear")
    if not candidates:
        raise NoPick(
            f"{workload} was not measured{asked}, and no plan has it; this command makes a plan: "
            f"`{_plan_command(chosen, workload.partition(':')[0])}`"
        )
    fits = [found for found in candidates if found.peak <= memory]
    if not fits:
        least = min(candidates, key=lambda found: found.peak)
        raise NoPick(
            f"nothing fits in {mebibytes(memory)}: the least is {least.impl} in {least.dtype}, "
            f"with {mebibytes(least.peak)}"
        )
    fastest: dict[tuple[str, str], Pick] = {}
    for found in sorted(fits, key=lambda found: found.milliseconds):
        fastest.setdefault((found.run, found.dtype), found)
    return list(fastest.values())


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _measured(group: pd.DataFrame, workload: str) -> Iterator[Pick]:
    cell = group[group["workload"] == workload]
    if cell.empty:
        return
    cell = cell[cell["text"] == cell["text"].iloc[-1]]  # the newest of texts or files of this name
    table = measured(cell).dropna(subset=[TOTAL, "peak_memory"])
    steady = table[~table["noisy"]]
    table = table if steady.empty else steady
    where, dtype = run(cell.iloc[[-1]]), cell["dtype"].iloc[0]  # of the newest commit
    for impl, of in table.iterrows():
        yield Pick(dtype, where, str(impl), of[TOTAL], workload, of["peak_memory"], of["error"])


def _planned(group: pd.DataFrame, plans: pd.DataFrame, workload: str) -> Iterator[Pick]:
    wanted = shape(workload)
    of_group = group.iloc[0]
    tables = {str(name): measured(cell) for name, cell in group.groupby("workload", sort=False)}
    timed = {
        name: float(np.prod(size, dtype=float))
        for name, table in tables.items()
        if (size := shape(name)) is not None and table[TOTAL].notna().any()
    }
    if wanted is None or not timed:
        return
    right = (plans[SHAPE] == list(wanted)).all(axis=1) & (plans["dtype"] == of_group["dtype"])
    right &= (plans["device"] == kind_of_device(of_group["device"])) & plans["peak_memory"].notna()
    # A plan of the same torch is the best. The plan that was read last is the second best.
    order = (plans["torch"] == of_group["torch"])[right].sort_values(kind="stable").index
    peaks = plans.loc[order].drop_duplicates("impl", keep="last").set_index("impl")
    work = float(np.prod(wanted, dtype=float))
    nearest = min(timed, key=lambda name: abs(np.log(timed[name] / work)))
    table = tables[nearest].dropna(subset=TOTAL)
    for impl in table.index.intersection(peaks.index):
        of, plan = table.loc[impl], peaks.loc[impl]
        yield Pick(
            of_group["dtype"],
            run(group[group["workload"] == nearest].iloc[[-1]]),
            str(impl),
            of[TOTAL],
            nearest,
            plan["peak_memory"],
            of["error"],
            plan["torch"],
        )


def _plan_command(rows: pd.DataFrame, workload: str) -> str:
    """The command whose plan has ``workload`` in all dtypes of ``rows``, on one kind of device."""
    device = min(map(kind_of_device, rows["device"]))
    dtypes = sorted(set(rows.loc[rows["device"].map(kind_of_device) == device, "dtype"]))
    words = ["python -m benchmarks plan --workload", workload, *(f"--dtype {of}" for of in dtypes)]
    return " ".join([*words, "--device cuda"] if device == "cuda" else words)
