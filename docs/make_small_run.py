"""Trains a small GPT on the tokens of Python's manual, and records a late step of its loss.

python docs/make_small_run.py [STEPS] writes run.safetensors and config.json.
"""

import itertools
import json
import sys

import torch
import torch.nn.functional as F
from torch import nn

import benchmarks
from benchmarks.workloads import tokens

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 150
VOCAB, WIDTH, CONTEXT, BATCH = 50257, 128, 64, 16


class SmallGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            *(WIDTH, 4, 4 * WIDTH, 0.0, F.gelu), batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 3, nn.LayerNorm(WIDTH), False)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.embedding(ids) + self.position, self.mask, is_causal=True)
        return self.lm_head(hidden)


def train(model: nn.Module, ids: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    for step in itertools.count():
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,)).tolist()
        batch = torch.stack([ids[start : start + CONTEXT + 1] for start in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.2f}")
        if step == STEPS:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


torch.manual_seed(0)
model = SmallGPT()
with benchmarks.capture("run.safetensors", step=STEPS, head=model.lm_head):
    train(model, tokens())
with open("config.json", "w") as config:  # of the same shape, for random numbers
    json.dump({"model_type": "small_gpt", "n_embd": WIDTH, "vocab_size": VOCAB}, config)
