"""One rank of ``benchmarks.ranks.pool``: a process that runs the functions it is sent.

A function is called with its ``Rank`` and the arguments that were sent. Its result, or what it
raises, is sent back. ``forward`` and ``backward`` are two such functions, for a sharded loss.
Between the two calls the rank keeps the graph.
"""

import functools
import pickle
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import impls
from benchmarks import requests

START = timedelta(seconds=120)
SLICED = ("linear_weight", "linear_bias", "weight")


@dataclass(eq=False)
class Call:
    """A call of a sharded loss, as all its ranks get it. Each rank takes its slices itself."""

    number: int
    impl: str
    sizes: list[int] | None  # of each rank's slice; None hands each rank the whole
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    needed: list[str]  # the tensors whose gradients are wanted
    autocast: torch.dtype | None
    compiled: bool  # whether the caller is inside torch.compile
    stance: str  # torch.compiler.set_stance's, for what the loss itself compiles

    def slice(self, name: str, rank: int) -> Tensor:
        if self.sizes is None or name not in SLICED:
            return self.tensors[name]
        start = sum(self.sizes[:rank])
        return self.tensors[name][start : start + self.sizes[rank]]


@dataclass
class Kept:
    """What a rank keeps for the backward of a call."""

    call: Call
    value: Tensor
    leaves: dict[str, Tensor]


@dataclass
class Rank:
    """The rank that a function runs on. ``groups[k]`` is the group of the first k ranks."""

    number: int
    device: torch.device
    groups: dict[int, Any] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    # Tensors that nothing may change, with a copy of each.
    watched: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def watch(self, tensors: dict[str, Tensor]) -> None:
        self.watched |= {name: (t.detach(), t.detach().clone()) for name, t in tensors.items()}

    def check_watched(self) -> None:
        for name, (tensor, copy) in self.watched.items():
            if not same(tensor, copy):
                raise AssertionError(f"{name} is overwritten on rank {self.number}")


def same(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are equal; nan equals nan."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@functools.cache
def load(impl: str) -> impls.Loss:
    return impls.load(impl)


def forward(rank: Rank, k: int, call: Call, alive: Collection[int]) -> Tensor:
    """The value of ``call``. Of earlier calls, the graphs of those that are ``alive`` are kept."""
    rank.kept = {number: kept for number, kept in rank.kept.items() if number in alive}
    rank.check_watched()  # earlier calls may have changed them after they answered
    loss = load(call.impl)
    tensors = {name: call.slice(name, rank.number).to(rank.device) for name in call.tensors}
    leaves = {name: tensors[name].detach().requires_grad_() for name in call.needed}
    own = ("input",) if loss.support.overwrites_input else ()
    rank.watched.clear()
    rank.watch({name: tensor for name, tensor in tensors.items() if name not in own})
    fn = torch.compile(loss.fn, backend="aot_eager") if call.compiled else loss.fn
    cast = torch.autocast(rank.device.type, call.autocast, enabled=call.autocast is not None)
    stance = torch.compiler.set_stance(call.stance)
    with stance, cast, torch.set_grad_enabled(bool(leaves)):
        value = fn(**tensors | leaves, **call.options, group=rank.groups[k])
    if value.requires_grad != bool(leaves):
        raise AssertionError(f"requires_grad of the value is {value.requires_grad}")
    rank.check_watched()
    if leaves:
        rank.kept[call.number] = Kept(call, value, leaves)
    return value.detach()


def backward(
    rank: Rank, k: int, number: int, upstream: Tensor, create_graph: bool
) -> dict[str, Tensor]:
    """The gradients of call ``number``. Of sliced tensors, each rank has those of its slice."""
    kept = rank.kept[number]
    with torch.compiler.set_stance(kept.call.stance):
        grads = torch.autograd.grad(
            kept.value,
            tuple(kept.leaves.values()),
            upstream.to(rank.device),
            retain_graph=not kept.call.compiled,  # torch.compile cannot retain it
            create_graph=create_graph,
        )
    if any(grad.requires_grad for grad in grads):
        raise RuntimeError("second derivatives cannot be sent from process to process")
    rank.check_watched()
    named = dict(zip(kept.leaves, grads, strict=True))
    rank.watch({f"the gradient of {name}": grad for name, grad in named.items()})
    return named


def main(number: str, world_size: str, folder: str, timeout: str, device: str, fd: str) -> None:
    """Answer requests until the channel is closed."""
    torch.set_num_threads(1)
    own = torch.device("cuda", int(number)) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(own)  # NCCL and kernels use the current device
    rank = Rank(int(number), own)
    store = dist.FileStore(f"{folder}/store", int(world_size))
    store.set(f"{number} is there", "")
    # Wait until all have imported torch. ``timeout`` is for what they do after that.
    store.wait([f"{other} is there" for other in range(int(world_size))], START)
    within = timedelta(seconds=float(timeout))
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank.number,
        world_size=int(world_size),
        timeout=within,
    )
    counts = range(1, int(world_size) + 1)
    rank.groups = {k: dist.new_group(range(k), timeout=within) for k in counts}
    channel = Connection(int(fd))
    channel.send_bytes(pickle.dumps("ready"))
    requests.serve(channel, lambda function, *arguments: function(rank, *arguments))
    # The process that asks kills this process in the end. Here, it was killed itself before.
    shutil.rmtree(folder, ignore_errors=True)
