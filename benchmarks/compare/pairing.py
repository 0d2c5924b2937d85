"""Two targets, measured in turn by live processes: raw pairs, for verdicts.

Each process has a bias of its own. So a pair is a fresh set of four processes, and each process has
a role: the base, the head, and two controls, which run the base again. One control, "planted", has
an injected slowdown. Each role has a parent process, which has imported the revision and called the
loss. The processes of a pair are forked from the parents. Base and controls do not share a parent:
if they do, the head is half a percent slower, because it alone has its own parent
(docs/experiments, 0019). The parents are forked from a process that has imported torch and holds
the tensors, so that all processes read the tensors at the same place. If a target replaces a
package that this process has imported, such as torch, each role has such a process of its own.

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
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks import ROOT
from benchmarks.compare.client import Process, ProcessRaised, Server, ask_all
from benchmarks.compare.targets import is_foreign, level_in, open_targets, what_torch_changes
from benchmarks.measure import memory
from benchmarks.measure.availability import Unmeasurable, tensors
from benchmarks.workloads import Workload
from impls.loss import INTERPRETED

ROLES = {"base": "base", "head": "head", "control": "base", "planted": "base"}  # role: revision
TURNS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))  # a Williams design
# Seconds that a block takes, and a cell in a pair, about. On a GPU, whose own clock times a call, a
# block is one call. Calls scatter by 0.1 % there and processes by 0.3 %, so a pair is short.
BLOCK = {"cpu": 0.004, "cuda": 0.0}
SECONDS = {"cpu": 1.0, "cuda": 0.25}
MOST_ROUNDS = 60
EXACT = ("peak_memory", "saved_memory")
HALF = "bfloat16"

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What one verdict is about."""

    impl: str
    pass_: str


class Comparison:
    """Base and head, exported to the server's folder, and a process for each role."""

    def __init__(
        self,
        server: Server,
        names: dict[str, str],
        dtype: str,
        device: str,
        repo: Path = ROOT,
        whole: bool = False,  # compare more of this repository than ``impls``
    ):
        self.server, self.names, self.dtype, self.device = server, names, dtype, device
        self.targets = open_targets(names, server.folder, repo, whole)
        self.stack = ExitStack()  # of the servers below
        self.servers = dict.fromkeys(ROLES, server)
        self.levels: dict[str, str] = {}  # of each loss
        self.environments: dict[str, Row] = {}  # of base and head
        self.workloads: dict[str, Workload] = {}  # by level
        self.compiling = False
        self.prepares = True
        self.roles: dict[str, Process] = {}
        self.prepared: list[str] = []  # what the processes of the roles have compiled
        self.calls: dict[Cell, float] = {}  # seconds of a call, from the last pair

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def begin(self, names: Iterable[str], level: str | None = None) -> dict[str, str]:
        """Learn the level of each loss. Returns why a loss cannot be measured, for those losses.

        The server then loads torch's compiler if a loss needs it, which takes seconds. Meanwhile
        this process can prepare what to ``give``. Where the signature of a function does not tell
        the function's level, ``level`` tells it.
        """
        self._start_servers()
        found: list[Row] = []
        unmeasurable: dict[str, str] = {}
        with ExitStack() as stack:
            both = {role: stack.enter_context(self._fork(role)) for role in self.names}
            for name in names:
                asked = {
                    "impl": name,
                    "dtype": self.dtype,
                    "level": level if is_foreign(name) else None,
                }
                answers = ask_all(both.values(), "describe", **asked)
                found += answers
                for role, answer in zip(both, answers, strict=True):
                    self.levels[name] = answer["level"] or level_in(name)
                    if answer["unmeasurable"]:
                        unmeasurable[name] = f"{self.names[role]}: {answer['unmeasurable']}"
                        break
        # Compiling for CUDA starts CUDA, and a process that has started CUDA cannot be forked. If
        # torch is built for CUDA, compiling for the CPU is no better: the forks have no backward.
        forkable = self.device == "cpu" and not any(answer["cuda"] for answer in found)
        self.compiling = any(answer["compiles"] for answer in found)
        # Triton's interpreter takes seconds for a call, and has no times.
        self.prepares = (forkable or not self.compiling) and not INTERPRETED
        self.compiling = self.compiling and forkable
        if self.compiling:
            for server in self._all_servers():
                server.ask_later("compile_once")
        return unmeasurable

    def _start_servers(self) -> None:
        """Start a server for each role, if a target replaces a package that a server imports.

        A server of the base that the A/A control shares would hide from the control what two
        servers of the same code differ by.
        """
        sets = [target.package_set for target in self.targets.values()]
        modules = {module for one in sets if one is not None for module in one.modules}
        if not modules & self.server.ask("imported"):
            return
        is_free = True
        for role, of in ROLES.items():
            one = self.targets[of].package_set
            if one is None and is_free:
                is_free = False  # this role keeps the server that is there
                continue
            new = Server(self.server.on_cuda, one.folder if one is not None else None)
            self.servers[role] = self.stack.enter_context(new)

    def _all_servers(self) -> list[Server]:
        return list(dict.fromkeys(self.servers.values()))

    def give(self, workloads: Mapping[str, Workload]) -> None:
        """Give the server the tensors of each level. Raises ``Unmeasurable``."""
        self.workloads = dict(workloads)
        for level, chosen in workloads.items():
            given = tensors(chosen, level, self.dtype, self.device)
            torch.save(given, self.server.folder / f"{level}.pt")
            del given
        memory.free_cache(self.device)
        if self.compiling:
            for server in self._all_servers():
                server.answer()
        levels = {name: level for name, level in self.levels.items() if is_foreign(name)}
        asked: Row = {"device": self.device, "folder": str(self.server.folder), "levels": levels}
        ask_all(self._all_servers(), "give", **asked)
        self.roles = {role: self._fork(role) for role in ROLES}

    def _fork(self, role: str) -> Process:
        target = self.targets[ROLES[role]]
        return self.servers[role].fork(target.name, target.path, str(target.here))

    def _cell(self, impl: str) -> Row:
        chosen = self.workloads[self.levels.get(impl, level_in(impl))]
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
        self.roles = {role: self._fork(role) for role in ROLES}
        for other in self.prepared:
            ask_all(self.roles.values(), "prepare", impl=other, dtype=self.dtype)

    def exact_rows(self, impl: str) -> list[Row]:
        """Rows of bytes and errors of base and head. Raises ``Unmeasurable``."""
        rows: list[Row] = []
        # One after the other: the oracle needs much memory.
        for role in self.names:
            with self.roles[role].fork() as process:
                found = process.ask("bytes_and_errors", impl=impl, dtype=self.dtype)
                in_half = self._errors_in_half(process, impl)
                self.environments[role] = process.ask("environment")
                of_cell = self._cell(impl) | {"role": role}
            if "unmeasurable" in found:
                raise Unmeasurable(f"{self.names[role]}: {found['unmeasurable']}")
            rows += [
                of_cell | {"metric": metric, "unit": "bytes", "value": found[metric]}
                for metric in EXACT
            ]
            for dtype, errors in {self.dtype: found, HALF: in_half}.items():
                if errors:
                    parts = zip(errors["errors"], errors["budgets"], strict=True)
                    worst = max(error / budget for error, budget in parts)
                    error: Row = {"metric": "error", "unit": "of its budget", "value": worst}
                    rows.append(of_cell | error | {"dtype": dtype})
        return [
            self._environment(row["role"], self.environments[row["role"]]) | row for row in rows
        ]

    def _errors_in_half(self, process: Process, impl: str) -> Row:
        """The errors in half precision, where an upgrade may break a loss that is right in float32.

        They are empty if half precision is compared anyway, or if the loss does not take it.
        """
        if self.dtype not in ("float32", "float64"):
            return {}
        try:
            found: Row = process.ask("bytes_and_errors", impl=impl, dtype=HALF)
        except ProcessRaised:
            return {}
        return {} if "unmeasurable" in found else found

    def _environment(self, role: str, found: Row) -> Row:
        """``found``, with both torches where torch is what is compared, and both its CUDAs.

        A process whose torch differs from its target's torch keeps its own, and is not comparable.
        """
        if found == self.environments.get(ROLES[role]):
            return found | what_torch_changes(self.targets, self.environments)
        return found

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
                    yield self._environment(row["role"], environments[row["role"]]) | row

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
