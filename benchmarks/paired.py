"""Two revisions of ``impls``, measured in turn by live processes: raw pairs, for verdicts.

Each revision is imported by a process of its own, which is idle while another measures. A pair is a
fresh set of processes, as each has a bias of its own: one of the base, one of the head, and another
of the base, the control, half of whose blocks have a planted slowdown. They are forked from one
that has imported torch and holds the tensors, so that all read these at the same place. They take
turns in blocks of calls, in the order A B C A C B, again and again: each comes after each of the
others as often, and none after itself, which alone makes a block faster by a percent. A block
counts as its fastest call, since what disturbs a call only adds to it; what is compared is the same
round of two.
"""

import csv
import filecmp
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks.common import Unmeasurable
from benchmarks.processes import Processes
from benchmarks.revisions import export

TURNS = (0, 1, 2, 0, 2, 1)  # two rounds
BLOCK = 3, 0.01  # calls and seconds, at least
SECONDS = 0.9  # about, of a pair for each cell
MOST_ROUNDS = 60
FIRST_CALLS = 4  # of a process: the heap still grows, and they take five times as long
# Seconds before a block: another process's threads still spin, and the caches are its own.
WARM_UP = 0.003
PLANTED = 0.01  # beyond the margin, of the slowdown that must be seen
EXACT = ("peak_memory", "saved_memory")

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What one verdict is about."""

    impl: str
    pass_: str


class Comparison:
    """``base`` and ``head``, exported to a folder, and the processes that measure them in turn."""

    def __init__(self, folder: Path, names: dict[str, str], dtype: str, device: str):
        self.folder, self.names, self.dtype, self.device = folder, names, dtype, device
        self.commits = {role: export(revision, folder / role) for role, revision in names.items()}
        self.processes: Processes | None = None

    def changed(self) -> list[str]:
        """The implementations of both that differ; all, if what they share does."""
        base, head = (self.folder / role / "impls" for role in ("base", "head"))
        both = [name for name in impls.names(head) if name in impls.names(base)]
        shared = {file.name for folder in (base, head) for file in folder.glob("*.py")}
        if differing(base, head, shared - {"__main__.py"}):
            return both
        files = {name: str(Path(*name.split(".")).with_suffix(".py")) for name in both}
        changed = differing(base, head, set(files.values()))
        return [name for name in both if files[name] in changed]

    def start(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Start what measures, with the tensors of each level."""
        for level, tensors in inputs.items():
            torch.save(dict(tensors), self.folder / f"{level}.pt")
        self.processes = Processes(self.folder, self.device)

    def exact(self, impl: str) -> list[Row]:
        """Rows of bytes and errors, of base and head. Raises ``Unmeasurable``."""
        rows: list[Row] = []
        for role in ("base", "head"):  # one after the other: the oracle needs much memory
            processes = self._fork(role)
            found = processes.ask(role, "exact", impl=impl, dtype=self.dtype)
            if "unmeasurable" in found:
                raise Unmeasurable(f"{self.names[role]}: {found['unmeasurable']}")
            of_cell = processes.ask(role, "environment") | {"impl": impl, "role": role}
            rows += [
                of_cell | {"metric": metric, "unit": "bytes", "value": found[metric]}
                for metric in EXACT
            ]
            parts = zip(found["errors"], found["budgets"], strict=True)
            worst = max(error / budget for error, budget in parts)
            rows.append(of_cell | {"metric": "error", "unit": "of its budget", "value": worst})
        return rows

    def pair(self, number: int, cells: Iterable[Cell], margin: float) -> Iterator[Row]:
        """The rows of a fresh set of processes: rounds of each cell."""
        roles = ["base", "head", "control"]
        first = number % len(roles)  # to be the first is no merit
        order = roles[first:] + roles[:first]
        processes = self._fork(*order)
        environments = processes.ask_all("environment")
        environments["planted"] = environments["control"]
        for cell in cells:
            ask: Row = {"do": "block", "impl": cell.impl, "dtype": self.dtype, "pass_": cell.pass_}
            ask["warm_up"] = WARM_UP
            begin: Row = {"calls": FIRST_CALLS, "delay": 0.0, "seed": 0}
            processes.ask_all(**ask, **begin)
            alone = [processes.ask(role, **ask, **begin) for role in order]
            call = min(map(min, alone))
            calls = max(BLOCK[0], round(BLOCK[1] / call))
            rounds = SECONDS / (len(order) * (calls * call + max(call, WARM_UP)))
            for place, turn in enumerate(TURNS * max(2, min(MOST_ROUNDS, round(rounds)) // 2)):
                of = order[turn]
                round_ = place // len(order)
                role = "planted" if of == "control" and round_ % 4 in (0, 3) else of
                delay = call * (margin + PLANTED) if role == "planted" else 0.0
                seed = number * MOST_ROUNDS + round_
                block = processes.ask(of, **ask, calls=calls, delay=delay, seed=seed)
                of_cell = {"impl": cell.impl, "metric": cell.pass_, "unit": "ms", "role": role}
                value = {"pair": number, "round": round_, "value": 1e3 * min(block)}
                yield environments[role] | of_cell | value

    def close(self) -> None:
        if self.processes is not None:
            self.processes.close()

    def _fork(self, *roles: str) -> Processes:
        assert self.processes is not None, "start() comes first"
        revisions = {role: "head" if role == "head" else "base" for role in roles}
        self.processes.fork(
            {role: (self.names[of], self.folder / of) for role, of in revisions.items()}
        )
        return self.processes


@contextmanager
def comparison(base: str, head: str, dtype: str, device: str) -> Iterator[Comparison]:
    """A ``Comparison`` of two git revisions that leaves neither files nor processes."""
    with tempfile.TemporaryDirectory(prefix="cross-entropy-", ignore_cleanup_errors=True) as folder:
        made = Comparison(Path(folder), {"base": base, "head": head}, dtype, device)
        try:
            yield made
        finally:
            made.close()


def differing(base: Path, head: Path, files: set[str]) -> set[str]:
    same, _, _ = filecmp.cmpfiles(base, head, files, shallow=False)
    return files - set(same)


def pairs(
    comparison: Comparison,
    cells: list[Cell],
    margin: float,
    budget: float,
    decided: Callable[[list[Row]], set[Cell]],
) -> Iterator[Row]:
    """Rows of times until ``decided`` has every cell, or ``budget`` seconds a cell are over."""
    rows: list[Row] = []
    left, number = cells, 0
    end = time.monotonic() + budget * len(cells)
    while left and time.monotonic() < end:
        for row in comparison.pair(number, left, margin):
            rows.append(row)
            yield row
        number += 1
        done = decided(rows)
        left = [cell for cell in left if cell not in done]


def append(path: Path, rows: Iterable[Row], constant: Row, columns: list[str]) -> Iterator[Row]:
    """``rows`` again, each written to the CSV at ``path`` before the next is asked for."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            full = constant | row
            writer.writerow(full)
            file.flush()
            yield full
