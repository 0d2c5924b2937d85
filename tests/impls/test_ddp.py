"""Two processes in DistributedDataParallel: the gradients are those of the whole batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import impls
from benchmarks.measure import oracle
from benchmarks.ranks.pool import Ranks
from benchmarks.ranks.worker import Rank
from tests.gate.training import Head

D, V = 8, 37
IGNORED = -100
# Of each rank, its micro-batches: how many rows each has, and how many of these are ignored.
MICRO_BATCHES = (((60, 2), (40, 0)), ((20, 13), (30, 30)))


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


def data() -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """The weight and the bias, and each rank's micro-batches: hidden states and targets."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        "linear_weight": torch.randn(V, D, generator=generator),
        "linear_bias": torch.randn(V, generator=generator),
    }
    batches = []
    for of_rank in MICRO_BATCHES:
        batches.append([])
        for n, ignored in of_rank:
            target = torch.randint(V, (n,), generator=generator)
            target[:ignored] = IGNORED
            batches[-1].append((torch.randn(n, D, generator=generator), target))
    return parameters, batches


@torch.compiler.set_stance("force_eager")  # the gate's ``in_ddp`` compiles, in one process
def train(rank: Rank, k: int, name: str) -> dict[str, Tensor]:
    """The gradients on this rank, which has its own micro-batches alone."""
    parameters, batches = data()
    mine = batches[rank.number]
    counted = sum((target != IGNORED).sum() for _, target in mine)
    dist.all_reduce(counted)
    loss = impls.load(name)
    fn = (loss.as_linear() if loss.level == "logits" else loss).fn
    module = DistributedDataParallel(Head(fn, parameters, {"reduction": "sum"}))
    for number, batch in enumerate(mine, 1):
        with nullcontext() if number == len(mine) else module.no_sync():
            (module(*batch) * k / counted).backward()
    return {name: one.grad for name, one in module.module.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear.builtin", "linear.fused", "logits.fused"])
def test_unequal_ranks_have_the_gradients_of_the_whole_batch(two: Ranks, name: str) -> None:
    """The ranks count 98 and 7 tokens, in two micro-batches each."""
    parameters, batches = data()
    exact = {name: tensor.double() for name, tensor in parameters.items()}
    whole = Head(oracle.linear_cross_entropy, exact, {"reduction": "mean"})
    input, target = (torch.cat(parts) for parts in zip(*chain(*batches), strict=True))
    whole(input.double(), target).backward()
    for gradients in two.run(2, train, name):
        for parameter, expected in whole.named_parameters():
            assert oracle.error(gradients[parameter], expected.grad) < 1e-5, parameter
