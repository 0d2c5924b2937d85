"""Each level's reference: the reading and writing, or the matrix products, that the losses share.

A reference is timed like a loss, in the same rounds. The time of a loss over the time of the
reference says more than milliseconds, which change from machine to machine. A reference computes no
exponential and allocates nothing.

- Logits: forward reads each logit once. Backward copies the logits: it reads each and writes its
  gradient. Both passes together are the copy alone.
- Linear: forward is one matrix product, backward two.
- Sharded: the three products of this rank's slice. The reference's times leave out what a rank
  sends, because a loss can send while it computes. Its bytes are counted: for each row, the
  log Σ exp over the slice and the slice's part of the input's gradient, in one collective each.
- Logprobs: as linear. The upstream gradient of a row is known in backward alone. So a loss that
  holds no logits makes a fourth product.

A reference is no lower bound of each pass. A loss that computes its gradients in forward has a
faster backward, and a loss that skips part of the work, as a filter does, can be faster in both.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Reference(ABC):
    """A reference has the passes of a ``measure.step.Step``, so both are timed by the same code."""

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
        """Bytes of the gradients, which a loss has to allocate."""


class LogitsReference(Reference):
    name = "logits.reference"

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.input = tensors["input"].detach()  # (N, V)
        self.grad = torch.empty_like(self.input)
        # Summed as float32 in every dtype: the reading is measured, not a conversion.
        numbers = self.input.view(-1)
        each = max(1, 4 // numbers.element_size())
        self.words = numbers[: len(numbers) // each * each].view(torch.float32)

    def forward(self) -> None:
        self.words.sum()

    def backward(self, loss: Any) -> None:
        self.grad.copy_(self.input)

    def forward_backward(self) -> None:
        self.backward(None)  # forward needs no reading of its own

    def gradient_bytes(self) -> int:
        return self.grad.nbytes


class LinearReference(Reference):
    name = "linear.reference"

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.input = tensors["input"].detach()  # (N, D)
        self.weight = tensors["linear_weight"].detach()  # (V, D)
        self.logits = self.input.new_empty(len(self.input), len(self.weight))
        self.grad_input, self.grad_weight = map(torch.empty_like, (self.input, self.weight))
        self.forward()  # fills the logits: a GPU multiplies zeros faster than other numbers

    def forward(self) -> None:
        torch.mm(self.input, self.weight.T, out=self.logits)

    def backward(self, loss: Any) -> None:
        torch.mm(self.logits, self.weight, out=self.grad_input)
        torch.mm(self.logits.T, self.input, out=self.grad_weight)

    def gradient_bytes(self) -> int:
        return self.grad_input.nbytes + self.grad_weight.nbytes


class ShardedReference(LinearReference):
    name = "sharded.reference"
    collectives = 2

    def sent_bytes(self) -> int:
        number = torch.promote_types(self.input.dtype, torch.float32)
        return len(self.input) * number.itemsize + self.input.nbytes


class LogprobsReference(LinearReference):
    name = "logprobs.reference"


REFERENCES: dict[str, type[LogitsReference] | type[LinearReference]] = {
    "logits": LogitsReference,
    "linear": LinearReference,
    "sharded": ShardedReference,
    "logprobs": LogprobsReference,
}
