"""A loss in a training step: what is measured, and whether it is right."""

from collections.abc import Mapping

import torch
from torch import Tensor

import impls
from benchmarks import oracle


class Step:
    """A loss as a training step calls it, mean over the tokens: ``forward``, then ``backward``."""

    def __init__(self, loss: impls.Loss, tensors: Mapping[str, Tensor]):
        self.loss = loss
        self.name = loss.name
        self.given = tensors
        self.tensors = self.own()
        self.leaves = [
            self.tensors[name].requires_grad_() for name in oracle.DIFFERENTIABLE if name in tensors
        ]
        # Not one: an implementation that ignores the upstream gradient must show.
        self.grad = torch.full((), 0.75, dtype=self.leaves[0].dtype, device=self.leaves[0].device)

    def own(self) -> dict[str, Tensor]:
        """The tensors to call the loss with: of an input that it overwrites, a copy."""
        if not self.loss.support.overwrites_input:
            return dict(self.given)
        return {**self.given, "input": self.given["input"].detach().clone()}

    def forward(self) -> Tensor:
        return self.loss.fn(**self.tensors)

    def backward(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.leaves, self.grad)

    def forward_backward(self) -> tuple[Tensor, ...]:
        return self.backward(self.forward())

    def expected(self) -> dict[str, Tensor]:
        """The oracle's value and gradients for these tensors."""
        return oracle.expected(self.loss.level, self.given, self.grad)

    def errors(self, expected: Mapping[str, Tensor]) -> list[float]:
        """The largest relative error of a gradient; of logits, also that apart from the targets.

        A target's entry is near -1 where the others are 1/V: alone it hides them from a norm.
        """
        actual = oracle.evaluate(self.loss.fn, self.own(), self.grad)
        names = [name for name in oracle.DIFFERENTIABLE if name in actual]
        errors = [max(oracle.error(actual[name], expected[name]) for name in names)]
        if self.loss.level == "logits":
            y = self.given["target"][:, None]
            errors.append(
                oracle.error(actual["input"].scatter(1, y, 0), expected["input"].scatter(1, y, 0))
            )
        return errors

    def budgets(self, expected: Mapping[str, Tensor], dtype: str) -> list[float]:
        """What is allowed of each of ``errors``: the builtin loss's own decide it."""
        native = Step(impls.load(f"{self.loss.level}.builtin"), self.given)
        return [oracle.budget(error, dtype) for error in native.errors(expected)]
