"""The fastest right loss that fits: from what was measured, or from a model of its memory."""

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from reports.analysis.change_points import ENVIRONMENT
from reports.analysis.selection import (
    TOTAL,
    Shape,
    by_date,
    level_of,
    measured,
    newest,
    run,
    shape,
    shapes,
)


class NoPick(LookupError):
    """There is none to name; the message says why, and what would help."""


@dataclass(frozen=True)
class Pick:
    """One environment's and dtype's answer."""

    dtype: str
    run: str  # where, in words
    impl: str
    milliseconds: float  # of forward and backward, at ``timed``
    timed: str  # a workload
    peak: float  # bytes that forward and backward allocate beside their arguments
    error: float  # of the gradients, relative
    model: "Model | None" = None  # that predicted the peak; None: it was measured


@dataclass(frozen=True)
class Model:
    """peak = logits · N·V + weight · V·D bytes, fitted to measured sizes."""

    logits: float
    weight: float
    off: float  # by what share a measured peak is off it, at most
    sizes: int

    def __str__(self) -> str:
        return (
            f"{self.logits:.3g} · tokens · V + {self.weight:.3g} · V · D bytes, fitted to "
            f"{self.sizes} sizes and at most {100 * self.off:.1f} % off"
        )

    def peak(self, shape: Shape) -> float:
        tokens, hidden, vocab = shape
        return self.logits * tokens * vocab + self.weight * vocab * hidden

    @classmethod
    def fit(cls, peaks: dict[Shape, float]) -> "Model | None":
        """The model nearest to the peaks, in proportion; None if they cannot tell its terms."""
        terms = np.array([[n * v, v * d] for n, d, v in peaks], dtype=float)
        bytes_ = np.array(list(peaks.values()), dtype=float)
        if len(peaks) < 2 or np.linalg.matrix_rank(terms / terms.max(axis=0)) < 2:
            return None
        relative = terms / bytes_[:, None]
        (logits, weight), _ = optimize.nnls(relative, np.ones(len(peaks)))
        off = float(abs(relative @ [logits, weight] - 1).max())
        return cls(float(logits), float(weight), off, len(peaks))


def pick(
    rows: pd.DataFrame,
    workload: str,
    memory: float,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Pick]:
    """For each environment and dtype: the fastest loss whose peak is within ``memory`` bytes.

    It is of the linear level, at which all losses can be compared in memory. A loss whose gradients
    are wrong has no times, and is none. Where the workload was not measured, peaks are predicted,
    and the times that rank are those of the nearest size that was. Raises ``NoPick``.
    """
    if shape(workload) is None and workload not in set(rows["workload"]):
        near = difflib.get_close_matches(workload, shapes(), n=3, cutoff=0.4) or list(shapes())
        raise NoPick(f"no workload {workload!r}; did you mean {', '.join(near)}?")
    wanted = (rows["impl"].map(level_of) == "linear") & ~rows["impl"].str.endswith(".reference")
    if device is not None:
        wanted &= (rows["device"] == "cpu") == (device == "cpu")
    if dtype is not None:
        wanted &= rows["dtype"] == dtype
    asked = (f" in {dtype}" if dtype else "") + (f" on {device}" if device else "")
    if not wanted.any():
        raise NoPick(f"nothing{asked} was measured at level linear")
    chosen = by_date(newest(rows[wanted]))
    groups = [group for _, group in chosen.groupby([*ENVIRONMENT, "dtype"], dropna=False)]
    candidates = [one for group in groups for one in _measured(group, workload)]
    if not candidates:
        candidates = [one for group in groups for one in _predicted(group, workload)]
    if not candidates:
        raise NoPick(
            f"{workload} was not measured{asked}, nor one loss at two sizes or more, from which "
            f"its memory could be predicted: `python -m benchmarks --workload {workload}` measures"
        )
    fits = [one for one in candidates if _at_most(one) <= memory]
    if not fits:
        least = min(candidates, key=_at_most)
        raise NoPick(
            f"nothing fits in {mebibytes(memory)}: the least is {least.impl} in {least.dtype}, "
            f"with {mebibytes(_at_most(least))}"
        )
    fastest: dict[tuple[str, str], Pick] = {}
    for one in sorted(fits, key=lambda one: one.milliseconds):
        fastest.setdefault((one.run, one.dtype), one)
    return list(fastest.values())


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _at_most(one: Pick) -> float:
    return one.peak * (1 + one.model.off) if one.model else one.peak


def _measured(group: pd.DataFrame, workload: str) -> list[Pick]:
    cell = group[group["workload"] == workload]
    if cell.empty:
        return []
    table = measured(cell)
    where, dtype = run(cell), cell["dtype"].iloc[0]
    return [
        Pick(dtype, where, impl, one[TOTAL], workload, one["peak_memory"], one["error"])
        for impl, one in table.dropna(subset=[TOTAL, "peak_memory"]).iterrows()
    ]


def _predicted(group: pd.DataFrame, workload: str) -> list[Pick]:
    wanted = shape(workload)
    tables = {name: measured(cell) for name, cell in group.groupby("workload", sort=False)}
    known = {name: size for name in tables if (size := shape(str(name))) is not None}
    if wanted is None or not known:
        return []
    timed = [name for name in known if tables[name][TOTAL].notna().any()]
    if not timed:
        return []
    work = {name: float(np.prod(known[name], dtype=float)) for name in timed}
    nearest = min(timed, key=lambda name: abs(np.log(work[name] / np.prod(wanted, dtype=float))))
    found = []
    for impl, one in tables[nearest].dropna(subset=TOTAL).iterrows():
        peaks = {
            known[name]: float(table.at[impl, "peak_memory"])
            for name, table in tables.items()
            if name in known and impl in table.index and table.at[impl, "peak_memory"] > 0
        }
        model = Model.fit(peaks)
        if model is not None:
            peak = model.peak(wanted)
            numbers = (one[TOTAL], str(nearest), peak, one["error"])
            found.append(Pick(group["dtype"].iloc[0], run(group), str(impl), *numbers, model))
    return found
