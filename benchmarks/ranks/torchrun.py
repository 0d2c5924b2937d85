"""The processes that torchrun started, measured as one: a rank alone is no loss.

They do the same at the same time, and agree on every number: of times, bytes and errors the largest
of any rank counts. Rank 0 alone prints and writes. Without torchrun there is one process, and
nothing to agree on.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=5)  # that a rank waits for the others, before it raises

started = False  # whether this process is a rank, within ``in_step``
interrupted = False  # by Ctrl-C, since then


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def ranks_here() -> int:
    """How many ranks this machine has, of which each needs a device."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    return not is_launched() or os.environ["RANK"] == "0"


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed; what is raised is seen nevertheless."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def group(device: str) -> Iterator[None]:
    """torch's default group of what torchrun started: gloo on the CPU, NCCL on GPUs, one each."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=TIMEOUT)
    try:
        with in_step():
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def in_step() -> Iterator[None]:
    """The ranks of torch's default group agree on what is measured.

    On Ctrl-C, all raise ``KeyboardInterrupt`` at the same place: the next time they agree on a
    number. Were one to leave a collective alone, the others would wait there.
    """
    global started, interrupted
    started, interrupted = True, False
    previous = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        started = False
        signal.signal(signal.SIGINT, previous)


def _interrupt(*_: Any) -> None:
    global interrupted
    interrupted = True


def rank() -> int:
    return dist.get_rank() if started else 0


def world_size() -> int:
    return dist.get_world_size() if started else 1


def largest(value: float) -> float:
    """The largest of all ranks' values, once all are here."""
    return largest_of_each([value])[0]


def largest_of_each(values: list[float]) -> list[float]:
    """The same of several values at once."""
    if not started:
        return values
    numbers = torch.tensor([*values, interrupted], dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    *found, anyone_interrupted = numbers.tolist()
    if anyone_interrupted:
        raise KeyboardInterrupt
    return found


def gather(slice_: Tensor) -> list[Tensor] | None:
    """On the first rank, all ranks' slices."""
    slices: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(slice_.cpu(), slices)
    return slices


def scatter(parts: list[Any] | None) -> Any:
    """This rank's of the first one's parts."""
    mine = [None]
    dist.scatter_object_list(mine, parts)
    return mine[0]
