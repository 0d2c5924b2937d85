"""Ranks that die, lag or leave: a clear error within the stated time, and no process left."""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
import torch
import torch.distributed as dist

import impls
from benchmarks.measure import memory, torch_compat
from benchmarks.ranks.pool import RankFailed, Ranks
from benchmarks.ranks.worker import Rank
from tests.gate.case import Case
from tests.gate.values import judge

TIMEOUT = 4.0  # seconds; the collectives have half of it


@pytest.fixture(scope="module")
def hasty() -> Iterator[Ranks]:
    with Ranks(2, timeout=TIMEOUT) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def compiling() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


def summed(rank: Rank, k: int) -> float:
    one = torch.ones(())
    dist.all_reduce(one, group=rank.groups[k])
    return one.item()


def killed(rank: Rank, k: int) -> float:
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return summed(rank, k)


def stopped(rank: Rank, k: int) -> float:
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return summed(rank, k)


def raises_alone(rank: Rank, k: int) -> float:
    if rank.number == 1:
        raise KeyError("y")
    return summed(rank, k)


GLOO_SAYS = r"rank 0 raised RuntimeError: .*"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (killed, rf"^rank 1 died of SIGKILL; {GLOO_SAYS}[Cc]onnection"),
        (stopped, rf"^rank 1 did not answer 'stopped' within \d s; {GLOO_SAYS}[Tt]imed out"),
        (raises_alone, rf"^{GLOO_SAYS}[Tt]imed out.*; rank 1 raised KeyError: 'y'"),
    ],
    ids=["killed", "stopped", "raises alone"],
)
def test_a_rank_that_fails_is_named_in_time(hasty: Ranks, function, says: str) -> None:
    assert hasty.run(2, summed) == [2.0, 2.0]  # also after a failure: with new processes
    processes = [process.popen.pid for process in hasty.processes]
    start = time.monotonic()
    with pytest.raises(RankFailed, match=says):
        hasty.run(2, function)
    assert time.monotonic() - start < TIMEOUT + 1
    assert not any(psutil.pid_exists(pid) for pid in processes)


def peak_memory(rank: Rank, k: int, name: str) -> int:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(n, 64, generator=generator).requires_grad_() for n in (900, 3000)]
    target = torch.randint(3000, (900,), generator=generator)
    group = {"group": rank.groups[k]} if name.startswith("sharded.") else {}
    fn = impls.load(name).fn
    return memory.peak_memory(
        lambda: torch.autograd.grad(fn(*leaves, target, **group), leaves), "cpu"
    )


@pytest.mark.slow
def test_a_rank_of_fused_holds_what_linear_fused_does_of_its_slice(compiling: Ranks) -> None:
    whole = compiling.run(2, peak_memory, "linear.fused")
    sharded = compiling.run(2, peak_memory, "sharded.fused")
    assert max(sharded) < 1.02 * max(whole)
    assert max(sharded) < 0.5 * min(compiling.run(2, peak_memory, "sharded.eager"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_is_right_as_it_is_compiled(compiling: Ranks, dtype: str) -> None:
    """The gate runs it uncompiled. In half precision the logits are read again, not their exp."""
    loss = compiling.loss("sharded.fused", 2)
    for v in (37, 70):
        judge(loss, Case(n=6, v=v, dtype=dtype, label_smoothing=0.1, scale=4.0))


def uneven(rank: Rank, k: int) -> None:
    loss = impls.load("sharded.dtensor").fn
    weight = torch.randn(3 + rank.number, 4)
    loss(torch.randn(2, 4), weight, torch.tensor([0, 6]), group=rank.groups[k])


def test_dtensor_refuses_slices_that_a_dtensor_cannot_have(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match=r"in the slices of torch.chunk.* got \[3, 4\]"):
        ranks.run(2, uneven)


def test_fake_tensors_are_refused_before_a_process_starts() -> None:
    with Ranks(2) as ranks, torch_compat.FakeTensorMode():
        loss = ranks.loss("sharded.eager", 2)
        with pytest.raises(ValueError, match="without elements"):
            loss.fn(torch.empty(5, 7), torch.empty(11, 7), torch.zeros(5, dtype=torch.int64))
        assert not ranks.processes
