"""Processes that each hold a revision of ``impls``, and measure when they are asked.

``main`` answers requests of ``benchmarks.compare.client``. A process can be asked to fork. The new
process answers on its own channel, which comes with the request. So a tree of three levels grows: a
process that has torch and the tensors; a process for each role, which has its revision and the
compiled losses; and the processes that measure.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any
from unittest import mock

# Imported before any fork: what the benchmarks need, and what the first backward imports.
import psutil
import torch
import torch.fx.experimental.symbolic_shapes
from torch import Tensor

from benchmarks import requests
from benchmarks.environment.description import comparable
from benchmarks.measure import memory, timers, torch_compat

PADDING = 64, 2**20  # a unit in bytes, and how many units at most
LAST_THREAD = 2.0  # seconds in which the threads of a call end, on a busy machine too
HEAP = 8, 1 / 8  # times the tensors' bytes, but at most this share of the free memory


class Worker:
    def __init__(self, folder: Path, cores: set[int]):
        self.folder, self.cores = folder, cores
        self.device = "cpu"
        self.levels: dict[str, str] = {}  # of the losses whose name does not tell it
        self.given: dict[str, dict[str, Any]] = {}  # by level: tensors and options by name
        self.steps: dict[tuple[str, str], Any] = {}
        self.device_times: timers.Calls | None = None  # on CUDA
        self.random = random.Random()
        self.padding: Tensor | None = None

    def give(self, device: str, folder: str = "", levels: Mapping[str, str] = {}) -> None:
        """Load the tensors from a folder, by default its own, which has a file for each level.

        This precedes any fork, so that all forks read them at the same place. They are loaded to
        the CPU: CUDA does not survive a fork.
        """
        self.device, self.levels = device, dict(levels)
        self.given = {
            file.stem: torch.load(file, map_location="cpu")
            for file in Path(folder or self.folder).glob("*.pt")
        }

    def step(self, impl: str, dtype: str) -> Any:
        if (impl, dtype) not in self.steps:
            self.steps[impl, dtype] = self.new_step(impl, dtype)
        return self.steps[impl, dtype]

    def new_step(self, impl: str, dtype: str) -> Any:
        from benchmarks.measure.availability import check_options, load
        from benchmarks.measure.step import Step, converted

        loss = load(impl, dtype, self.device, self.levels.get(impl))
        given = converted(self.given[loss.level], self.device)
        self.given[loss.level] = given  # on the device, for the next step too
        check_options(loss, given)
        return Step(loss, converted(given, self.device, dtype))

    def environment(self) -> dict[str, Any]:
        return comparable(self.device)

    def imported(self) -> set[str]:
        """The modules at the top that this process has imported."""
        return {name.partition(".")[0] for name in sys.modules}

    def describe(self, impl: str, dtype: str, level: str | None = None) -> dict[str, Any]:
        """The loss's level, and whether it calls ``torch.compile`` when it is imported.

        Here ``torch.compile`` does nothing: it would import its compiler, which takes seconds.
        """
        from benchmarks.measure.availability import load

        with mock.patch("torch.compile", side_effect=uncompiled) as compile_:
            try:
                found, reason = load(impl, dtype, self.device, level).level, ""
            except unavailable_errors() as error:  # the class may be of the other revision's impls
                found, reason = "", str(error)
            compiles, cuda = compile_.called, torch.version.cuda is not None
        return {"level": found, "unmeasurable": reason, "compiles": compiles, "cuda": cuda}

    def compile_once(self) -> None:
        """Have torch.compile load what it needs, which is most of the time of its first call."""
        with suppress(Exception):  # where CPU code cannot be compiled, CUDA's may be
            in_thread(compile_something)

    def prepare(self, impl: str, dtype: str) -> bool:
        """Import the loss and call it, so that a fork of this process need not compile it.

        Returns whether this process can be forked afterwards: not if the loss left threads behind.
        On CUDA nothing is called: what has used a GPU cannot be forked.
        """
        forkable = True

        def first_call() -> None:
            with self.unbound():
                self.new_step(impl, dtype).forward_backward()

        if self.device == "cpu":
            with suppress(*unavailable_errors()):  # bytes_and_errors says so
                forkable = in_thread(first_call)
        return forkable

    def bytes_and_errors(self, impl: str, dtype: str) -> dict[str, Any]:
        """What has no noise: bytes, and the errors of the gradients with their budgets."""
        try:
            step = self.step(impl, dtype)
        except unavailable_errors() as reason:
            return {"unmeasurable": str(reason)}
        expected = step.expected()
        return {
            "errors": step.errors(expected),
            "budgets": step.budgets(expected, dtype),
            "peak_memory": memory.peak_memory(step.forward_backward, self.device),
            "saved_memory": memory.saved_memory(step.forward, self.device),
        }

    def warm_up(self, impl: str, dtype: str, pass_: str) -> None:
        """A call that is not timed, and may compile. Many processes make it at the same time.

        So it may run on any core. All calls that are timed run on one core, the same for all.
        """
        with self.unbound():
            self.fill(self.levels.get(impl, impl.partition(".")[0]))
            step = self.step(impl, dtype)
            self.call(step, pass_, slowdown=0.0)
            if self.device == "cuda":
                self.device_times = timers.Calls(lambda: self.run_of(step, pass_))

    @contextmanager
    def unbound(self) -> Iterator[None]:
        """Let this thread run on any core for a while. OpenMP binds it to one core."""
        if not self.cores:
            yield
            return
        bound = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, bound)

    def fill(self, level: str) -> None:
        """Write to as much memory as a loss may need, and free it, so that the loss uses it again.

        Whoever first touches a page waits for the system and, on a virtual machine, for the host.
        With large pages, a call can take half as long again.
        """
        times, share = HEAP
        needed = times * sum(getattr(one, "nbytes", 0) for one in self.given[level].values())
        padding, most = PADDING  # moves what a loss allocates
        free = share * memory.free_bytes(self.device)
        size = min(needed + padding * most, int(free))
        torch.empty(size, dtype=torch.uint8, device=self.device).fill_(0)

    def block(
        self, impl: str, dtype: str, pass_: str, calls: int, slowdown: float, seed: int
    ) -> list[float]:
        """Seconds of each of ``calls``. Each call is extended by ``slowdown`` times its own time.

        The addresses of what a loss allocates can change its time by a tenth. ``seed`` determines
        them: two processes of the same code that get the same requests in the same order have the
        same addresses. Over many blocks the addresses vary.
        """
        step = self.step(impl, dtype)
        self.random.seed(seed)
        size, most = PADDING
        self.padding = None
        self.padding = torch.empty(size * self.random.randrange(most), dtype=torch.uint8)
        return [self.call(step, pass_, slowdown) for _ in range(calls)]

    def call(self, step: Any, pass_: str, slowdown: float) -> float:
        if self.device_times is not None:
            return self.device_times.seconds(slowdown)
        pass_of_step = self.run_of(step, pass_)

        def run() -> Any:
            start = timers.perf_counter()
            result = pass_of_step()
            if slowdown:
                now = timers.perf_counter()
                until = now + slowdown * (now - start)
                while timers.perf_counter() < until:
                    pass
            return result

        return timers.seconds(run, self.device)

    def run_of(self, step: Any, pass_: str) -> Callable[[], Any]:
        """The function to time. For "backward", the forward is called here, and not timed."""
        if pass_ != "backward":
            return getattr(step, pass_)
        made: Any = step.forward()
        return lambda: step.backward(made)


def uncompiled(model: Any = None, **_: Any) -> Any:
    return (lambda model: model) if model is None else model  # a decorator, or what it returns


def unavailable_errors() -> tuple[type[Exception], ...]:
    """What is raised if a loss cannot run here. A function: it imports impls after a fork."""
    from benchmarks.measure.availability import Unmeasurable
    from impls import UnknownImplementation

    return Unmeasurable, UnknownImplementation


def in_thread(run: Callable[[], None]) -> bool:
    """Call ``run`` in a new thread, and return whether all threads that it started have ended.

    A fork has only the thread that forks. It would wait for ever for any other thread that its
    loss relies on. OpenMP's threads end a moment after the thread that started them.
    """
    before = psutil.Process().num_threads()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(run).result()
    end = time.monotonic() + LAST_THREAD
    while psutil.Process().num_threads() > before:
        if time.monotonic() > end:
            return False
        time.sleep(1e-3)
    return True


def compile_something() -> None:
    class Square(torch.autograd.Function):  # as in losses: torch.compile loads more for it
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * 2 * x

    x = torch.ones(8, requires_grad=True)
    torch.compile(lambda x: Square.apply(x).sum())(x).backward()


def serve(channel: Connection, worker: Worker) -> None:
    """Answer requests until the channel is closed. A fork answers on its own channel."""

    def act(do: str, request: dict[str, Any]) -> Any:
        if do == "fork":
            return fork(channel, worker, **request)
        return getattr(worker, do)(**request)

    requests.serve(channel, act)


def fork(channel: Connection, worker: Worker, path: list[str], here: str) -> None:
    """Fork. The new process never returns: it serves the channel that comes with the request."""
    reap()
    fd = recv_handle(channel)
    if os.fork():
        os.close(fd)
        return
    try:
        channel.close()
        sys.path[:0] = path  # it has impls, which was not imported before
        os.chdir(here or os.curdir)
        serve(Connection(fd), worker)
    finally:
        os._exit(0)


def reap() -> None:
    """Reap the forks that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(folder: str, fd: str) -> None:
    torch_compat.stop_progress_monitor()
    # The cores of the process that asks. OpenMP binds this process to one of them.
    linux = hasattr(os, "sched_getaffinity")
    cores = os.sched_getaffinity(os.getppid()) if linux else set()
    serve(Connection(int(fd)), Worker(Path(folder), cores))
    # The process that asks kills this process in the end. Here, it was killed itself before.
    shutil.rmtree(folder, ignore_errors=True)
