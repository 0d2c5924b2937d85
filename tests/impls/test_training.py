"""A small GPT that trains on real text: each loss gives the same course as PyTorch's own loss."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

import impls
from benchmarks import workloads
from benchmarks.workloads.model import Model, train

STEPS, BATCH, WIDTH = 30, 4, 48

# How far the courses of two right losses may differ: rounding, which grows over the steps.
RTOL = {"float32": 2e-5, "bfloat16": 3e-2}


@functools.cache
def text() -> tuple[Tensor, int]:
    """The text's first 20,000 tokens, numbered anew without gaps, and how many are distinct."""
    distinct, ids = workloads.tokens()[:20_000].unique(return_inverse=True)
    return ids, len(distinct)


def curve(loss: impls.Loss, dtype: str, device: str) -> list[float]:
    """The value of the loss at each step of the training."""
    ids, vocab = text()
    torch.manual_seed(0)
    model = Model(vocab, WIDTH).to(device, getattr(torch, dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    fn = (loss if loss.level == "linear" else loss.as_linear()).fn
    return list(itertools.islice(train(model, optimizer, ids, BATCH, fn), STEPS))


@functools.cache
def native_curve(dtype: str, device: str) -> list[float]:
    return curve(impls.load("logits.builtin"), dtype, device)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("dtype", RTOL)
def test_training_takes_the_same_course(loss: impls.Loss, dtype: str) -> None:
    if dtype not in loss.support.dtypes:
        pytest.skip(f"{loss.name} has no {dtype}")
    [device] = loss.support.devices
    native = native_curve(dtype, device)
    assert native[-1] < native[0] - 0.5, "the model does not learn: the test would prove nothing"
    actual = curve(loss, dtype, device)
    assert actual == pytest.approx(native, rel=RTOL[dtype])
