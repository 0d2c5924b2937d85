"""Two revisions of ``impls``, measured in turn by live processes: raw pairs, for verdicts.

Each revision is imported by a process of its own, which is idle while another measures. A pair is a
fresh set of processes, as each has a bias of its own: one of the base, one of the head, and another
of the base, the control, of which every second block has a planted slowdown. They take turns in
blocks of calls, in the order A B C A C B, again and again: each comes after each of the others as
often, and none after itself, which alone makes a block faster by a percent.
"""

import csv
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks.environment import LARGE_PAGES, PINNED_ALLOCATOR
from benchmarks.revisions import ROOT, export

TURNS = (0, 1, 2, 0, 2, 1)
ROUNDS = 8  # of turns
WARM_UP = 12  # calls: in the first ten or so the heap still grows, and they take five times as long
SECONDS = 0.01  # of calls in a block, at least two
PLANTED = 0.01  # beyond the margin, of the slowdown that must be seen
EXACT = ("peak_memory", "saved_memory")

Row = dict[str, Any]


class WorkerFailed(RuntimeError):
    """A process that measured a revision raised or died; the message says what it said last."""


@dataclass(frozen=True)
class Cell:
    impl: str
    pass_: str


class Process:
    """A ``benchmarks.worker`` of one revision, in a session of its own: Ctrl-C is not for it."""

    def __init__(self, of: str, folder: Path, source: Path, device: str):
        self.of = of
        self.log = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115  closed in close
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.worker", str(folder), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=folder,
            env=os.environ | environment(source),
            start_new_session=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines() or [f"exit {self.process.wait()}"]
            raise WorkerFailed(f"{self.of} cannot be measured: {lines[-1]}")
        if "error" in answer:
            raise WorkerFailed(f"{self.of} cannot be measured: {answer['error']}")
        return dict(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def environment(source: Path) -> dict[str, str]:
    return PINNED_ALLOCATOR | LARGE_PAGES | {"PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}


class Comparison:
    """``base`` and ``head`` exported to a folder that is gone afterwards, and measured in pairs."""

    def __init__(self, base: str, head: str, device: str):
        self.device = device
        self._temporary = tempfile.TemporaryDirectory(
            prefix="cross-entropy-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._temporary.name)
        try:
            self.commits = {
                role: export(revision, self.folder / role)
                for role, revision in (("base", base), ("head", head))
            }
        except BaseException:
            self._temporary.cleanup()
            raise
        self.names = {"base": base, "head": head}

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

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

    def give(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The tensors to measure with, of each level."""
        for level, tensors in inputs.items():
            torch.save(dict(tensors), self.folder / f"{level}.pt")

    def exact(self, names: Iterable[str], dtype: str) -> Iterator[Row]:
        """Rows of bytes and errors, of base and head."""
        for role in ("base", "head"):
            with ExitStack() as stack:
                process = self._start(role, stack)
                environment = process.ask("environment")
                for impl in names:
                    found = process.ask("exact", impl=impl, dtype=dtype)
                    values = {name: found[name] for name in EXACT}
                    over = [e / b for e, b in zip(found["errors"], found["budgets"], strict=True)]
                    values["error"] = max(over)
                    for metric, value in values.items():
                        unit = "of its budget" if metric == "error" else "bytes"
                        cell = {"impl": impl, "metric": metric, "unit": unit}
                        yield environment | cell | {"role": role, "value": value}

    def pair(self, number: int, cells: Iterable[Cell], margin: float) -> Iterator[Row]:
        """The rows of a fresh set of processes: ``ROUNDS`` of each cell."""
        with ExitStack() as stack:
            roles = ["base", "head", "control"]
            start = number % len(roles)  # to be the first is no merit
            order = roles[start:] + roles[:start]
            processes = {role: self._start(role, stack) for role in order}
            environments = {role: processes[role].ask("environment") for role in order}
            environments["planted"] = environments["control"]
            for cell in cells:
                of_cell = {"impl": cell.impl, "metric": cell.pass_, "unit": "ms"}
                request: Row = {"impl": cell.impl, "pass_": cell.pass_}
                first = [
                    processes[role].ask("block", calls=WARM_UP, delay=0.0, **request)
                    for role in order
                ]
                call = min(min(answer["seconds"]) for answer in first)
                calls = max(2, round(SECONDS / call))
                delay = call * (margin + PLANTED)
                for block, turn in enumerate(TURNS * ROUNDS):
                    role = of = order[turn]
                    if of == "control" and block // 3 % 4 in (0, 3):
                        role = "planted"
                    wait = delay if role == "planted" else 0.0
                    answer = processes[of].ask("block", calls=calls, delay=wait, **request)
                    place = {"role": role, "pair": number, "block": block}
                    value = {"value": 1e3 * min(answer["seconds"])}
                    yield environments[of] | of_cell | place | value

    def _start(self, role: str, stack: ExitStack) -> Process:
        of = "head" if role == "head" else "base"
        process = Process(self.names[of], self.folder, self.folder / of, self.device)
        stack.callback(process.close)
        return process


def differing(base: Path, head: Path, files: set[str]) -> set[str]:
    same, _, _ = filecmp.cmpfiles(base, head, files, shallow=False)
    return files - set(same)


def measure(
    comparison: Comparison,
    cells: list[Cell],
    dtype: str,
    margin: float,
    budget: float,
    decided: Callable[[list[Row], float], set[Cell]],
) -> Iterator[Row]:
    """Rows until ``decided`` has every cell, or ``budget`` seconds a cell are over.

    A cell whose gradients are wrong is not timed.
    """
    rows: list[Row] = []
    names = list(dict.fromkeys(cell.impl for cell in cells))
    for row in comparison.exact(names, dtype):
        rows.append(row)
        yield row
    wrong = {row["impl"] for row in rows if row["metric"] == "error" and not row["value"] <= 1}
    left = [cell for cell in cells if cell.impl not in wrong]
    end = time.monotonic() + budget * len(left)
    number = 0
    while left and time.monotonic() < end:
        for row in comparison.pair(number, left, margin):
            rows.append(row)
            yield row
        number += 1
        done = decided(rows, margin)
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
