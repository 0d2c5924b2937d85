"""Processes that hold a revision of ``impls`` each, and measure when they are asked.

``python -P -m benchmarks.worker FOLDER DEVICE FD`` imports torch, and forks one of itself for each
message on its socket FD: a folder that holds an ``impls``, and with it another socket. On that,
requests come to the new process as lines of JSON, and its answers go back so. All have the tensors
that FOLDER holds when the first message comes. A message that is but ``COMPILE`` has it compile
something once, which all that come after it do faster. ``benchmarks.processes`` asks.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

# Once here, and not in each process: what benchmarks need, and what the first backward imports.
import asv_runner.benchmarks.mark  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
from torch import Tensor

from benchmarks import meters, workloads
from benchmarks.environment import comparable
from benchmarks.processes import COMPILE

PADDING = 64, 2**20  # bytes, and how many of these at the most
HEAP = 8, 1 / 8  # times the tensors' bytes, but no more than this share of what is free

Given = dict[str, dict[str, Tensor]]  # a level's tensors


class Worker:
    def __init__(self, given: Given, device: str, cores: set[int]):
        # Not above: these import impls, which is there since the fork.
        from benchmarks.common import Unmeasurable, load
        from benchmarks.step import Step
        from impls import UnknownImplementation

        self.load, self.new_step = load, Step
        self.cannot = Unmeasurable, UnknownImplementation
        self.device, self.cores = device, cores
        self.given = {
            level: {name: tensor.to(device) for name, tensor in tensors.items()}
            for level, tensors in given.items()
        }
        self.steps: dict[tuple[str, str], Any] = {}
        self.random = random.Random()
        self.padding: Tensor | None = None

    def step(self, impl: str, dtype: str) -> Any:
        if (impl, dtype) not in self.steps:
            loss = self.load(impl, dtype, self.device)
            self.steps[impl, dtype] = self.new_step(loss, self.given[loss.level])
        return self.steps[impl, dtype]

    def environment(self) -> dict[str, Any]:
        return comparable(self.device)

    def compiles(self, impl: str, dtype: str) -> bool:
        """Whether the loss calls ``torch.compile`` when it is imported.

        It does not compile, here: the real one imports its compiler, which takes seconds.
        """
        with mock.patch("torch.compile", side_effect=uncompiled) as compile_:
            with suppress(*self.cannot):  # exact says so
                self.load(impl, dtype, self.device)
            return compile_.called

    def exact(self, impl: str, dtype: str) -> dict[str, Any]:
        """What has no noise: bytes, and how far the gradients are off, and may be."""
        try:
            step = self.step(impl, dtype)
        except self.cannot as reason:
            return {"unmeasurable": str(reason)}
        expected = step.expected()
        return {
            "errors": step.errors(expected),
            "budgets": step.budgets(expected, dtype),
            "peak_memory": meters.peak_memory(step.forward_backward, self.device),
            "saved_memory": meters.saved_memory(step.forward, self.device),
        }

    def warm_up(self, impl: str, dtype: str, pass_: str) -> None:
        """A call that does not count, and may compile: many processes do so at the same time.

        That is why it runs on any core. Calls that count run on one, the same for all processes.
        """
        with self.unbound():
            self.fill(impl.partition(".")[0])
            self.call(self.step(impl, dtype), pass_, slowdown=0.0)

    @contextmanager
    def unbound(self) -> Iterator[None]:
        """This thread on any core, for a while, and not on that to which OpenMP binds it."""
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
        """Write to as much memory as a loss may come to need, and free it, for it to be used again.

        The first to touch a page waits for the system and, on a virtual machine, for its host: with
        large ones a call can take half as long again.
        """
        times, share = HEAP
        needed = times * sum(tensor.nbytes for tensor in self.given[level].values())
        padding, most = PADDING  # what a loss allocates is moved by that
        free = share * workloads.free_bytes(self.device)
        size = min(needed + padding * most, int(free))
        torch.empty(size, dtype=torch.uint8, device=self.device).fill_(0)

    def block(
        self, impl: str, dtype: str, pass_: str, calls: int, slowdown: float, seed: int
    ) -> list[float]:
        """Seconds of each of ``calls``, each of which is drawn out by ``slowdown`` of its time.

        Where what a loss allocates lies in memory can be a tenth of its time. It is ``seed``'s to
        say: two processes of the same code that are asked the same, in the same order, have it
        alike, and over many blocks it is everywhere.
        """
        step = self.step(impl, dtype)
        self.random.seed(seed)
        size, most = PADDING
        self.padding = None
        self.padding = torch.empty(size * self.random.randrange(most), dtype=torch.uint8)
        return [self.call(step, pass_, slowdown) for _ in range(calls)]

    def call(self, step: Any, pass_: str, slowdown: float) -> float:
        made: Any = step.forward() if pass_ == "backward" else None

        def run() -> Any:
            start = time.perf_counter()
            result = step.backward(made) if pass_ == "backward" else getattr(step, pass_)()
            if slowdown:
                meters.synchronize(self.device)
                now = time.perf_counter()
                until = now + slowdown * (now - start)
                while time.perf_counter() < until:
                    pass
            return result

        return meters.seconds(run, self.device)


def uncompiled(model: Any = None, **_: Any) -> Any:
    """What ``torch.compile`` is given; without it, a decorator, as that one then is."""
    return (lambda model: model) if model is None else model


def serve(source: str, channel: socket.socket, given: Given, device: str, cores: set[int]) -> None:
    """Answer requests until the channel is closed."""
    sys.path.insert(0, source)
    worker = None
    with channel.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            try:
                worker = worker or Worker(given, device, cores)
                answer = {"answer": getattr(worker, request.pop("do"))(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=lines, flush=True)


def compile_once() -> None:
    """Have torch.compile load what it needs: most of the time that it takes in a fresh process.

    Of a few numbers, which no thread of OpenMP's is started for: those do not survive a fork.
    """

    class Square(torch.autograd.Function):  # for one of these, as losses are, it loads most
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


def main(folder: str, device: str, fd: str) -> None:
    os.dup2(2, 1)  # what a loss prints is no answer
    given: Given = {}
    # Those that the process which asks may use: this one is bound to one of them.
    linux = hasattr(os, "sched_getaffinity")
    cores = os.sched_getaffinity(os.getppid()) if linux else set()
    with socket.socket(fileno=int(fd)) as control:
        while True:
            message, channels, _, _ = socket.recv_fds(control, 4096, 1)
            if not message:
                break
            if message == COMPILE:
                with suppress(Exception):  # where CPU code cannot be compiled, CUDA's may be
                    compile_once()
            else:
                # Before any fork, so that all read them at the same place, and never on a device:
                # CUDA does not survive a fork.
                given = given or {
                    file.stem: torch.load(file, map_location="cpu")
                    for file in Path(folder).glob("*.pt")
                }
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for one that has ended
                if os.fork() == 0:
                    control.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    channel = socket.socket(fileno=channels[0])
                    serve(message.decode(), channel, given, device, cores)
                    os._exit(0)
                os.close(channels[0])
            control.send(b".")
    # Who asked kills this process when it is done: it is only here if that one was killed itself.
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
