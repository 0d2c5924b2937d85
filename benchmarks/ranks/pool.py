"""Starts ranks on this machine, each a process, and wraps a sharded loss as a linear loss."""

import inspect
import itertools
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks import requests
from benchmarks.ranks.worker import SLICED, START, Call, backward, forward, same
from impls.shared.compile import is_fake

GRACE = 10.0  # seconds that the other ranks have once a rank has failed
RANK_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes for each rank
}
# The relative sizes of the slices of the first k ranks: uneven, and for 4 ranks one is empty.
UNEVEN = {1: (1,), 2: (1, 2), 3: (3, 1, 2), 4: (2, 0, 3, 1)}


def needs_ranks(name: str) -> bool:
    """Whether the loss ``name`` is called by all ranks of a group at once, as the sharded are."""
    return name.partition(".")[0] == "sharded"


class RankFailed(RuntimeError):
    """A rank died, did not answer, or raised what others did not; the message says which rank."""


class Ranks:
    """``world_size`` processes, each a rank of one group. The first request starts them.

    If an answer takes more than ``timeout`` seconds, ``RankFailed`` is raised. The collectives of
    the ranks give up after half of that time, so that no rank waits for a rank that lags or died.
    After a ``RankFailed`` no process is left, and the next request starts new processes.
    """

    def __init__(
        self,
        world_size: int = 4,
        timeout: float = 180.0,
        device: str = "cpu",
        compiles: bool = True,  # if False, what a loss compiles itself runs uncompiled
    ):
        self.world_size, self.timeout, self.device = world_size, timeout, device
        self.compiles = compiles
        self.processes: list[requests.Process] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.numbers = itertools.count()
        self.live: weakref.WeakSet[Call] = weakref.WeakSet()  # calls that may need their graphs

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, k: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(Rank, k, *arguments)`` returns on each of the first ``k`` ranks.

        If all ranks raise an exception of the same type, it is raised here. If only some raise, or
        the types differ, ``RankFailed`` is raised.
        """
        try:
            if not self.processes:
                self.start()
            for process in self.processes[:k]:
                process.send(function.__name__, function, k, *arguments)
            answers = self.answers(k, self.timeout)
            errors = [answer.error for answer in answers if isinstance(answer, requests.Raised)]
            if errors and (len(errors) < k or len({type(error) for error in errors}) > 1):
                raise RankFailed(what_happened(answers))
        except BaseException:
            self.close()
            raise
        if errors:
            raise errors[0]
        return answers

    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        for number in range(self.world_size):
            process = requests.start(
                f"rank {number}",
                "benchmarks.ranks.worker",
                *(number, self.world_size, self.folder.name, self.timeout / 2, self.device),
                log=Path(self.folder.name, f"rank{number}.log"),
                environment=RANK_ENVIRONMENT,
                limit=self.timeout,
            )
            self.processes.append(process)
        self.answers(self.world_size, START.total_seconds())

    def close(self) -> None:
        for process in self.processes:
            process.close()
        self.processes = []
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None

    def answers(self, k: int, seconds: float) -> list[Any]:
        """What the first ``k`` ranks send within ``seconds``. Once a rank has failed, the others
        have ``GRACE`` seconds. Raises ``RankFailed`` if a rank does not answer."""
        asked = {process.channel: process for process in self.processes[:k]}
        answers: dict[requests.Process, Any] = {}
        until = time.monotonic() + seconds
        while missing := asked.keys() - {process.channel for process in answers}:
            ready: list[Any] = connection.wait(missing, max(0.0, until - time.monotonic()))
            for channel in ready or missing:
                process = asked[channel]
                try:
                    answers[process] = process.receive(0)
                except requests.NoAnswer as error:
                    answers[process] = error
                if isinstance(answers[process], requests.NoAnswer | requests.Raised):
                    until = min(until, time.monotonic() + GRACE)
        in_order = [answers[process] for process in asked.values()]
        if any(isinstance(answer, requests.NoAnswer) for answer in in_order):
            raise RankFailed(what_happened(in_order))
        return in_order

    def loss(self, name: str, k: int) -> impls.Loss:
        """The sharded loss ``name`` across the first ``k`` ranks, as a linear loss of this process.

        Each call sends its tensors to the ranks and collects the gradients. It raises
        ``AssertionError`` if the ranks disagree on a result that all must have, or if a rank
        overwrites an argument. It raises ``ValueError`` for fake tensors.
        """
        loss = impls.load(name)
        parameters = inspect.signature(loss.fn).parameters.values()
        signature = inspect.Signature([one for one in parameters if one.name != "group"])

        @torch.compiler.disable
        def across(compiled: bool, *given: Any, **keywords: Any) -> Tensor:
            arguments = signature.bind(*given, **keywords).arguments
            tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
            if any(is_fake(tensor) for tensor in tensors.values()):
                raise ValueError("a tensor without elements cannot be sent to a rank")
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


def what_happened(answers: list[Any]) -> str:
    """One line, which begins with the ranks that did not answer, then those that raised."""
    silent, raised, well = [], [], []
    for number, answer in enumerate(answers):
        if isinstance(answer, requests.NoAnswer):
            silent.append(str(answer))
        elif isinstance(answer, requests.Raised):
            raised.append(f"rank {number} raised {answer.text.strip().partition(chr(10))[0]}")
        else:
            well.append(f"rank {number} answered")
    return "; ".join(silent + raised + well)


def slices(tensors: dict[str, Tensor], k: int, even: bool) -> list[int] | None:
    """How many classes each of ``k`` ranks has. Of few classes, torch.chunk makes fewer slices.

    None if the tensors to slice differ in length. Then each rank gets whole tensors, and the loss
    must refuse them.
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
    """A call on the ranks. Results that all ranks must have are compared exactly."""

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
    """The tensor that all ranks have. Raises ``AssertionError`` if they differ."""
    first, *others = of_ranks
    for number, other in enumerate(others, 1):
        if not same(first, other.to(first.device)):
            raise AssertionError(f"{what} differs between the ranks 0 and {number}")
    return first
