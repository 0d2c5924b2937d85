"""The least that any implementation must do, measured like one: its times are the others' unit.

Logits: forward reads each logit once; backward, or both together, reads each and writes its
gradient, a copy. Linear: forward is one matrix product, backward two, both together three. Nothing
else is counted, no exponential and no allocation. An implementation that makes its gradients in
forward may beat the limit of backward alone, never that of both.

Sharded: the three products of this rank's slice. What a rank sends is not in these times, as it can
go on beside them; it is counted. Of each row the others need its log Σ exp over the slice, and the
slice's share of the input's gradient, in one collective each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Limit(ABC):
    """What a step must do at the least, with the passes of a ``common.Step``."""

    name: str

    @abstractmethod
    def forward(self) -> None: ...

    @abstractmethod
    def backward(self, loss: Any) -> None: ...

    def forward_backward(self) -> None:
        self.forward()
        self.backward(None)

    def forward_backward_unit(self) -> None:
        self.forward_backward()

    @abstractmethod
    def gradient_bytes(self) -> int:
        """The memory of the gradients, which every step allocates."""


class LogitsLimit(Limit):
    name = "logits.limit"

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.input = tensors["input"].detach()  # (N, V)
        self.grad = torch.empty_like(self.input)
        # Summed as float32 whatever the dtype: reading is to cost, not converting.
        numbers = self.input.view(-1)
        each = max(1, 4 // numbers.element_size())
        self.words = numbers[: len(numbers) // each * each].view(torch.float32)

    def forward(self) -> None:
        self.words.sum()

    def backward(self, loss: Any) -> None:
        self.grad.copy_(self.input)

    def forward_backward(self) -> None:
        self.backward(None)  # the one reading serves both

    def gradient_bytes(self) -> int:
        return self.grad.nbytes


class LinearLimit(Limit):
    name = "linear.limit"

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.input = tensors["input"].detach()  # (N, D)
        self.weight = tensors["linear_weight"].detach()  # (V, D)
        self.logits = self.input.new_empty(len(self.input), len(self.weight))
        self.grad_input, self.grad_weight = map(torch.empty_like, (self.input, self.weight))
        self.forward()  # for backward alone: a GPU multiplies zeros faster than numbers

    def forward(self) -> None:
        torch.mm(self.input, self.weight.T, out=self.logits)

    def backward(self, loss: Any) -> None:
        torch.mm(self.logits, self.weight, out=self.grad_input)
        torch.mm(self.logits.T, self.input, out=self.grad_weight)

    def gradient_bytes(self) -> int:
        return self.grad_input.nbytes + self.grad_weight.nbytes


class ShardedLimit(LinearLimit):
    name = "sharded.limit"
    collectives = 2

    def sent_bytes(self) -> int:
        number = torch.promote_types(self.input.dtype, torch.float32)
        return len(self.input) * number.itemsize + self.input.nbytes


LIMITS: dict[str, type[LogitsLimit] | type[LinearLimit]] = {
    "logits": LogitsLimit,
    "linear": LinearLimit,
    "sharded": ShardedLimit,
}
