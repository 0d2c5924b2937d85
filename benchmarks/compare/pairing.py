"""Two revisions of ``impls``, measured in turn by live processes: raw pairs, for verdicts.

Each process has a bias of its own. So a pair is a fresh set of four processes, and each process has
a role: the base, the head, and two controls, which run the base again. One control, "planted", has
an injected slowdown. Each role has a parent process, which has imported the revision and called the
loss. The processes of a pair are forked from the parents. Base and controls do not share a parent:
if they do, the head is half a percent slower, because it alone has its own parent
(docs/experiments, 0019). The parents are forked from a process that has imported torch and holds
the tensors, so that all processes read the tensors at the same place.

The processes of a pair take turns, call by call, and are idle while another measures. In the order
of turns, each comes after each of the others equally often, and never after itself: a call right
after a call of the same process is a percent faster. If a call is short, a turn is a block of
several calls. The block counts as its fastest call, since disturbances only add time.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

import impls
from benchmarks.compare.client import Process, Server, ask_all
from benchmarks.compare.targets import export, sources
from benchmarks.measure import memory
from benchmarks.measure.availability import Unmeasurable, tensors
from benchmarks.workloads import Workload

ROLES = {"base": "base", "head": "head", "control": "base", "planted": "base"}  # role: revision
TURNS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))  # a Williams design
# Seconds that a block takes, and a cell in a pair, about. On a GPU, whose own clock times a call, a
# block is one call. Calls scatter by 0.1 % there and processes by 0.3 %, so a pair is short.
BLOCK = {"cpu": 0.004, "cuda": 0.0}
SECONDS = {"cpu": 1.0, "cuda": 0.25}
MOST_ROUNDS = 60
EXACT = ("peak_memory", "saved_memory")

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What one verdict is about."""

    impl: str
    pass_: str


class Comparison:
    """Base and head, exported to the server's folder, and a process for each role."""

    def __init__(self, server: Server, names: dict[str, str], dtype: str, device: str):
        self.server, self.names, self.dtype, self.device = server, names, dtype, device
        self.commits = {
            role: export(revision, server.folder / role) for role, revision in names.items()
        }
        self.workloads: dict[str, Workload] = {}  # by level
        self.compiling = False
        self.prepares = True
        self.roles: dict[str, Process] = {}
        self.prepared: list[str] = []  # what the processes of the roles have compiled
        self.calls: dict[Cell, float] = {}  # seconds of a call, from the last pair

    def changed(self) -> list[str]:
        """The losses of both revisions that differ, in their own file or in an imported file."""
        base, head = self._losses().values()
        folder = self.server.folder
        return [
            name
            for name in head
            if name in base and sources(folder / "base", name) != sources(folder / "head", name)
        ]

    def unpaired(self) -> dict[str, list[str]]:
        """The losses that only the base has, and those that only the head has."""
        base, head = self._losses().values()
        return {
            "base": [name for name in base if name not in head],
            "head": [name for name in head if name not in base],
        }

    def _losses(self) -> dict[str, list[str]]:
        folder = self.server.folder
        return {revision: impls.names(folder / revision / "impls") for revision in self.names}

    def begin(self, impls: Iterable[str]) -> None:
        """Have the server load torch's compiler if a loss needs it, which takes seconds. Meanwhile
        this process can prepare what to ``give``."""
        with ExitStack() as stack:
            both = [stack.enter_context(self._fork(revision)) for revision in self.names]
            self.compiling = any(
                any(ask_all(both, "compiles", impl=impl, dtype=self.dtype)) for impl in impls
            )
        # Compiling for CUDA starts CUDA, and a process that has started CUDA cannot be forked. If
        # torch is built for CUDA, compiling for the CPU is no better: the forks have no backward.
        forkable = self.device == "cpu" and torch.version.cuda is None
        self.prepares = forkable or not self.compiling
        self.compiling = self.compiling and forkable
        if self.compiling:
            self.server.ask_later("compile_once")

    def give(self, workloads: Mapping[str, Workload]) -> None:
        """Give the server the tensors of each level. Raises ``Unmeasurable``."""
        self.workloads = dict(workloads)
        for level, chosen in workloads.items():
            given = tensors(chosen, level, self.dtype, self.device)
            torch.save(given, self.server.folder / f"{level}.pt")
            del given
        memory.free_cache(self.device)
        if self.compiling:
            self.server.answer()
        self.server.ask("give", device=self.device)
        self.roles = {role: self._fork(of) for role, of in ROLES.items()}

    def _fork(self, revision: str) -> Process:
        return self.server.fork(self.names[revision], self.server.folder / revision)

    def _cell(self, impl: str) -> Row:
        chosen = self.workloads[impl.partition(".")[0]]
        names = {"workload": chosen.name, "text": chosen.text_hash}
        return {"impl": impl, "dtype": self.dtype} | names

    def prepare(self, impl: str) -> None:
        """Have the process of each role import and compile the loss, so that its forks need not.

        Some losses leave threads behind. A fork does not have these threads, and would wait for
        them for ever. After such a loss, new processes replace the processes of the roles, and each
        fork compiles the loss itself.
        """
        if not self.prepares:
            return
        if all(ask_all(self.roles.values(), "prepare", impl=impl, dtype=self.dtype)):
            self.prepared.append(impl)
            return
        for process in self.roles.values():
            process.close()
        self.roles = {role: self._fork(of) for role, of in ROLES.items()}
        for other in self.prepared:
            ask_all(self.roles.values(), "prepare", impl=other, dtype=self.dtype)

    def exact_rows(self, impl: str) -> list[Row]:
        """Rows of bytes and errors of base and head. Raises ``Unmeasurable``."""
        rows: list[Row] = []
        # One after the other: the oracle needs much memory.
        for role in self.names:
            with self.roles[role].fork() as process:
                found = process.ask("bytes_and_errors", impl=impl, dtype=self.dtype)
                of_cell = process.ask("environment") | self._cell(impl) | {"role": role}
            if "unmeasurable" in found:
                raise Unmeasurable(f"{self.names[role]}: {found['unmeasurable']}")
            rows += [
                of_cell | {"metric": metric, "unit": "bytes", "value": found[metric]}
                for metric in EXACT
            ]
            parts = zip(found["errors"], found["budgets"], strict=True)
            worst = max(error / budget for error, budget in parts)
            rows.append(of_cell | {"metric": "error", "unit": "of its budget", "value": worst})
        return rows

    def pair(self, number: int, cells: Iterable[Cell], slowdown: float) -> Iterator[Row]:
        """The rows of a fresh set of processes; ``slowdown`` is the injected one."""
        first = number % len(ROLES)  # no role is always the first
        with ExitStack() as stack:
            processes = {
                role: stack.enter_context(self.roles[role].fork())
                for role in [*ROLES][first:] + [*ROLES][:first]
            }
            answers = ask_all(processes.values(), "environment")
            environments = dict(zip(processes, answers, strict=True))
            for cell in cells:
                for row in self._rounds(cell, number, processes, slowdown):
                    yield environments[row["role"]] | row

    def _rounds(
        self, cell: Cell, number: int, processes: Mapping[str, Process], slowdown: float
    ) -> Iterator[Row]:
        """The rows of a cell: rounds of a block for each role."""
        ask: Row = {"impl": cell.impl, "dtype": self.dtype, "pass_": cell.pass_}
        ask_all(processes.values(), "warm_up", **ask)
        one: Row = {"calls": 1, "slowdown": 0.0, "seed": 0}
        call = self.calls.get(cell) or min(
            min(process.ask("block", **ask, **one)) for process in processes.values()
        )
        calls = max(1, round(BLOCK[self.device] / call))
        rounds = round(SECONDS[self.device] / (len(ROLES) * calls * call))
        of_base = []
        order = list(processes)
        for round_ in range(max(len(TURNS), min(MOST_ROUNDS, rounds))):
            seed = number * MOST_ROUNDS + round_
            turns = [order[turn] for turn in TURNS[round_ % len(TURNS)]]
            for position, role in enumerate(turns, len(order) * round_):
                one = {"calls": calls, "slowdown": slowdown * (role == "planted"), "seed": seed}
                block = min(processes[role].ask("block", **ask, **one))
                if role == "base":
                    of_base.append(block)
                yield self._cell(cell.impl) | {
                    **{"metric": cell.pass_, "unit": "ms", "role": role},
                    **{"pair": number, "block": position, "value": 1e3 * block},
                }
        self.calls[cell] = statistics.median(of_base)


def pairs(
    comparison: Comparison,
    cells: list[Cell],
    slowdown: float,
    budget: float,
    decided: Callable[[list[Row]], set[Cell]],
) -> Iterator[Row]:
    """Rows of times until every cell is ``decided``, or ``budget`` seconds for each are over."""
    rows: list[Row] = []
    left, number = cells, 0
    end = time.monotonic() + budget * len(cells)
    while left and time.monotonic() < end:
        for row in comparison.pair(number, left, slowdown):
            rows.append(row)
            yield row
        number += 1
        done = decided(rows)
        left = [cell for cell in left if cell not in done]
