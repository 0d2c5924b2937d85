"""Ranks on this machine, a process each, and a sharded loss across them as one linear loss."""

import inspect
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks import ROOT
from benchmarks.environment.variables import first_on_path
from benchmarks.ranks.worker import SLICED, START, Call, backward, forward, same

GRACE = 10.0  # seconds that the others have once one has failed
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes beneath each
}
# The slices of the first k ranks, relative to one another: uneven, and one of them empty.
UNEVEN = {1: (1,), 2: (1, 2), 3: (3, 1, 2), 4: (2, 0, 3, 1)}


def needs_ranks(name: str) -> bool:
    """Whether the loss ``name`` is called by all ranks of a group at once, as the sharded are."""
    return name.partition(".")[0] == "sharded"


class RankFailed(RuntimeError):
    """A rank died, did not answer, or raised what the others did not; the message says which."""


class Ranks:
    """``world_size`` processes, each a rank of one group, started when something is first asked.

    An answer takes ``timeout`` seconds at the most, or ``RankFailed`` is raised. The collectives of
    the ranks give up after half of that, so that none waits for one that lags or died. After a
    ``RankFailed`` no process is left; what is asked next starts new ones.
    """

    def __init__(
        self,
        world_size: int = 4,
        timeout: float = 180.0,
        device: str = "cpu",
        compiles: bool = True,  # or runs without what a loss compiles of its own
    ):
        self.world_size, self.timeout, self.device = world_size, timeout, device
        self.compiles = compiles
        self.processes: list[subprocess.Popen[bytes]] = []
        self.channels: list[connection.Connection] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.asked = 0.0  # when
        self.numbers = itertools.count()
        self.live: weakref.WeakSet[Call] = weakref.WeakSet()  # whose graphs are still of use

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, k: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(Rank, k, *arguments)`` returns on each of the first ``k`` ranks.

        What it raises, if that is of one type on all of them, is raised here; else ``RankFailed``.
        """
        try:
            if not self.processes:
                self.start()
            request = pickle.dumps((function, k, arguments))
            for channel in self.channels[:k]:
                with suppress(OSError):  # it died: that no answer comes will say so
                    channel.send_bytes(request)
            answers = self.answers(k, self.timeout)
            errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
            alike = len(errors) == k and len({type(error) for error in errors}) == 1
            if len(answers) < k or (errors and not alike):
                raise RankFailed(self.what_happened(k, answers))
        except BaseException:
            self.close()
            raise
        if errors:
            raise answers[0]
        return [answers[number] for number in range(k)]

    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        code = "import sys; from benchmarks.ranks.worker import main; main(*sys.argv[1:])"
        for number in range(self.world_size):
            ours, theirs = socket.socketpair()
            # A rank that is stopped reads nothing: the question, too, must not wait for ever.
            ours.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(self.timeout), 0)
            )
            fd, folder = theirs.fileno(), self.folder.name
            given = (number, self.world_size, folder, self.timeout / 2, self.device, fd)
            with theirs, self.log(number).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code, *map(str, given)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | ENVIRONMENT | first_on_path(ROOT),
                    pass_fds=[fd],
                    start_new_session=True,
                )
            self.processes.append(process)
            self.channels.append(connection.Connection(ours.detach()))
        answers = self.answers(self.world_size, START.total_seconds())
        if len(answers) < self.world_size:
            raise RankFailed(self.what_happened(self.world_size, answers))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for channel in self.channels:
            channel.close()
        self.processes, self.channels = [], []
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None

    def answers(self, k: int, seconds: float) -> dict[int, Any]:
        """What the first ``k`` ranks send, until all have, or ``seconds`` are over."""
        numbers = {channel: number for number, channel in enumerate(self.channels[:k])}
        answers = {}
        self.asked = time.monotonic()
        until = self.asked + seconds
        while numbers:
            ready: list[Any] = connection.wait([*numbers], max(0.0, until - time.monotonic()))
            if not ready:
                break
            for channel in ready:
                number = numbers.pop(channel)
                try:
                    answers[number] = pickle.loads(channel.recv_bytes())
                    failed = isinstance(answers[number], Exception)
                except (EOFError, OSError):
                    failed = True
                    with suppress(subprocess.TimeoutExpired):  # it is about to have ended
                        self.processes[number].wait(GRACE)
                if failed:
                    until = min(until, time.monotonic() + GRACE)
        return answers

    def what_happened(self, k: int, answers: dict[int, Any]) -> str:
        """One line, which begins with those that did not answer, then those that raised."""
        silent, raised, well = [], [], []
        for number in range(k):
            if number not in answers:
                silent.append(f"rank {number} {self.fate(number)}")
            elif isinstance(error := answers[number], Exception):
                first = str(error).strip().partition("\n")[0]
                raised.append(f"rank {number} raised {type(error).__name__}: {first}")
            else:
                well.append(f"rank {number} answered")
        return "; ".join(silent + raised + well)

    def fate(self, number: int) -> str:
        code = self.processes[number].poll()
        if code is None:
            return f"did not answer within {time.monotonic() - self.asked:.0f} s"
        if code < 0:
            return f"died of {signal.Signals(-code).name}"
        lines = self.log(number).read_text().strip().splitlines() or ["it said nothing"]
        return f"ended with exit code {code}: {lines[-1]}"

    def log(self, number: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name, f"rank{number}.log")

    def loss(self, name: str, k: int) -> impls.Loss:
        """The sharded loss ``name`` across the first ``k`` ranks, as a linear one of this process.

        Each call sends the ranks their slices and takes theirs of the gradients. ``AssertionError``
        says where ranks differ in what they must agree on, or one overwrites an argument.
        """
        loss = impls.load(name)
        parameters = inspect.signature(loss.fn).parameters.values()
        signature = inspect.Signature([one for one in parameters if one.name != "group"])

        @torch.compiler.disable
        def across(compiled: bool, *given: Any, **keywords: Any) -> Tensor:
            arguments = signature.bind(*given, **keywords).arguments
            tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
            needed = [name for name, tensor in tensors.items() if tensor.requires_grad]
            sizes = slices(tensors, k, loss.support.even_slices)
            call = Call(
                next(self.numbers),
                name,
                sizes,
                {name: tensor.detach() for name, tensor in tensors.items()},
                {name: a for name, a in arguments.items() if name not in tensors},
                needed if torch.is_grad_enabled() else [],
                autocast_dtype(tensors["input"].device.type),
                compiled,
                "default" if self.compiles or compiled else "force_eager",
            )
            return Across.apply(
                self, len(sizes or range(k)), call, *(tensors[name] for name in needed)
            )

        def linear_cross_entropy(*given: Any, **keywords: Any) -> Tensor:
            return across(torch.compiler.is_compiling(), *given, **keywords)

        linear_cross_entropy.__signature__ = signature  # type: ignore[attr-defined]
        return replace(loss, name=f"{loss.name}-{k}-ranks", level="linear", fn=linear_cross_entropy)


def slices(tensors: dict[str, Tensor], k: int, even: bool) -> list[int] | None:
    """How many classes each of ``k`` ranks has: of few, torch.chunk makes slices for fewer ranks.

    None, if what is to be sliced is not of one length: then each rank gets the whole, to refuse.
    """
    lengths = {len(tensors[name]) for name in SLICED if name in tensors}
    if len(lengths) > 1:
        return None
    [v] = lengths
    if even:
        return [len(chunk) for chunk in torch.arange(v).chunk(k)]
    bounds = [v * sum(UNEVEN[k][:i]) // sum(UNEVEN[k]) for i in range(k + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]


def autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class Across(torch.autograd.Function):
    """A call on the ranks. What they must agree on is compared to the bit."""

    @staticmethod
    def forward(ctx, ranks, k, call, *needed):
        ctx.ranks, ctx.k, ctx.call = ranks, k, call
        ranks.live.add(call)
        values = ranks.run(k, forward, call, {one.number for one in ranks.live})
        return agreed("the value", values).to(call.tensors["input"].device)

    @staticmethod
    def backward(ctx, upstream):
        answers = ctx.ranks.run(ctx.k, backward, ctx.call.number, upstream, torch.is_grad_enabled())
        device = upstream.device
        grads = []
        for name in ctx.call.needed:
            of_ranks = [answer[name].to(device) for answer in answers]
            if name in SLICED:
                grads.append(torch.cat(of_ranks))
            else:
                grads.append(agreed(f"the gradient of {name}", of_ranks))
        return None, None, None, *grads


def agreed(what: str, of_ranks: list[Tensor]) -> Tensor:
    """What all ranks have alike. Raises ``AssertionError`` if they do not."""
    first, *others = of_ranks
    for number, other in enumerate(others, 1):
        if not same(first, other.to(first.device)):
            raise AssertionError(f"{what} differs between the ranks 0 and {number}")
    return first
