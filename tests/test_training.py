"""A small GPT, trained on real text with each loss, ends where PyTorch's own loss takes it."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import impls
from benchmarks import workloads

STEPS, BATCH, CONTEXT, WIDTH = 30, 4, 32, 48

# How far two right losses may lead apart: rounding, grown over the steps.
APART = {"float32": 2e-5, "bfloat16": 3e-2}


@functools.cache
def text() -> tuple[Tensor, int]:
    """The text's first 20,000 tokens, numbered by the words that occur, and how many do."""
    distinct, ids = workloads.tokens()[:20_000].unique(return_inverse=True)
    return ids, len(distinct)


class Model(nn.Module):
    """Embedding, one block of causal attention and MLP; what the head is to multiply."""

    def __init__(self, vocab: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Parameter(0.02 * torch.randn(vocab, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position  # (batch, context, width)
        heads = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True))
        x = x + self.mlp(self.norms[1](x))
        return self.norms[2](x).flatten(0, 1)  # (tokens, width)


@functools.cache
def curve(name: str, dtype: str, device: str) -> list[float]:
    """The loss at each step of training with the implementation ``name``."""
    loss = impls.load(name)
    ids, vocab = text()
    torch.manual_seed(0)
    model = Model(vocab).to(device, getattr(torch, dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - CONTEXT - 1, (BATCH,)).tolist()
        inputs = torch.stack([ids[start : start + CONTEXT] for start in starts])
        targets = torch.stack([ids[start + 1 : start + CONTEXT + 1] for start in starts]).flatten()
        targets = targets.to(device)
        hidden = model(inputs.to(device))
        if loss.level == "logits":
            value = loss.fn(F.linear(hidden, model.head), targets)
        else:
            value = loss.fn(hidden, model.head, targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("dtype", APART)
def test_training_takes_the_same_course(loss: impls.Loss, dtype: str) -> None:
    if dtype not in loss.support.dtypes:
        pytest.skip(f"{loss.name} has no {dtype}")
    [device] = loss.support.devices
    native = curve("logits.builtin", dtype, device)
    assert native[-1] < native[0] - 0.5, "the model does not learn: the test would prove nothing"
    found = curve(loss.name, dtype, device)
    assert found == pytest.approx(native, rel=APART[dtype])
