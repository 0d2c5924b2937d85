"""Trains a small GPT on real tokens, for tests of losses and for a workload of peaked logits."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 32


class Model(nn.Module):
    """Embedding, one block of causal attention and MLP. Returns what the head multiplies."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.head = nn.Parameter(0.02 * torch.randn(vocab, width))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position[: ids.shape[-1]]  # (batch, context, width)
        query, key, value = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        x = x + self.mlp(self.norms[1](x))
        return self.norms[2](x).flatten(0, 1)  # (tokens, width)


def train(
    model: Model,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    batch: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Iterator[float]:
    """Train on random contexts without end. Yield each step's ``loss(hidden, head, target)``."""
    device = model.head.device
    while True:
        starts = torch.randint(len(ids) - CONTEXT - 1, (batch,)).tolist()
        contexts = torch.stack([ids[start : start + CONTEXT + 1] for start in starts]).to(device)
        value = loss(model(contexts[:, :-1]), model.head, contexts[:, 1:].flatten())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        yield value.item()


def linear_cross_entropy(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), target)
