"""Calls a loss as a training step does, and computes its errors and their budgets."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from benchmarks.ranks import torchrun

PASSES = ("forward", "backward", "forward_backward", "forward_backward_unit")


class Step:
    """A loss in a training step: ``forward``, the mean over the tokens, then ``backward``.

    Log-probabilities are measured as a linear loss, the mean of -log p.
    """

    def __init__(self, loss: impls.Loss, given: Mapping[str, Any], copy: Tensor | None = None):
        """``copy``: a tensor like the input, for a loss to overwrite; by default a new copy."""
        self.level = loss.level
        self.loss = loss.as_linear() if loss.level == "logprobs" else loss
        self.name = loss.name
        self.given = given  # tensors and options, by the names of the loss's arguments
        self.arguments = self.own(copy)
        self.leaves = [
            self.arguments[name].requires_grad_() for name in oracle.DIFFERENTIABLE if name in given
        ]
        # Not 1, so that a loss which ignores the upstream gradient has an error.
        of_rows = given.get("reduction") == "none"
        shape = given["target"].shape if of_rows else ()
        leaf = self.leaves[0]
        self.grad = torch.full(shape, 0.75, dtype=leaf.dtype, device=leaf.device)

    @property
    def overwrites_input(self) -> bool:
        return getattr(self.loss.support, "overwrites_input", False)  # old revisions lack it

    def own(self, copy: Tensor | None = None) -> dict[str, Any]:
        """The arguments to call the loss with. An input that the loss overwrites is a copy."""
        if not self.overwrites_input:
            return dict(self.given)
        copy = self.given["input"].detach().clone() if copy is None else copy
        return {**self.given, "input": copy}

    def renew_input(self) -> None:
        """Write the given input over what a loss made of the copy."""
        self.arguments["input"].data.copy_(self.given["input"].data)

    def swap_rows(self, rows: tuple[int, int], names: Iterable[str] = ("input", "target")) -> None:
        """Let two rows change places. The tensors stay at their addresses.

        With their targets, the loss of the batch stays the same. autograd counts no change.
        """
        one, other = rows
        for name in names:
            tensor = self.given[name].data
            row = tensor[one].clone()
            tensor[one] = tensor[other]
            tensor[other] = row

    def forward(self) -> Tensor:
        return self.loss.fn(**self.arguments)

    def backward(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.leaves, self.grad)

    def forward_backward(self) -> tuple[Tensor, ...]:
        return self.backward(self.forward())

    def forward_backward_unit(self) -> tuple[Tensor, ...]:
        """Both passes with an upstream gradient of exactly 1, as ``loss.backward()`` gives.

        Some losses then skip the multiplication of their gradients.
        """
        value = self.forward()
        return torch.autograd.grad(value, self.leaves, torch.ones_like(value))

    def expected(self) -> dict[str, Tensor]:
        """The oracle's value and gradients for these arguments."""
        return oracle.expected_in_chunks(self.loss.level, self.given, self.grad)

    def errors(self, expected: Mapping[str, Tensor]) -> list[float]:
        """The largest relative error of a gradient. For logits, also the error without the targets.

        In a row of the gradient, the target's entry is much larger than the other entries. A norm
        of all entries hides the errors of the other entries.
        """
        actual = oracle.evaluate(self.loss.fn, self.own(), self.grad)
        errors = [worst(actual, expected)]
        if self.loss.level == "logits":
            target = self.given["target"]
            counted = target != self.given.get("ignore_index", -100)
            targets = target.where(counted, 0)  # the gradient of an ignored row is 0 in any column
            errors.append(oracle.error(actual["input"], expected["input"], left_out=targets))
        return errors

    def budgets(self, expected: Mapping[str, Tensor], dtype: str) -> list[float]:
        """The budget of each of ``errors``, from PyTorch's own loss on the same arguments."""
        loss = replace(self.loss, fn=oracle.NATIVE[self.loss.level])
        if self.level == "logprobs":
            loss = impls.load("logprobs.builtin")
        native = Step(loss, self.given)
        return [oracle.budget(error, dtype) for error in native.errors(expected)]

    def errors_and_budgets(
        self, expected: Mapping[str, Tensor], dtype: str
    ) -> list[tuple[float, float]]:
        """Each of ``errors`` with its budget."""
        return list(zip(self.errors(expected), self.budgets(expected, dtype), strict=True))


def describe_excess(errors_and_budgets: Iterable[tuple[float, float]]) -> str:
    """The first error over its budget, in words; empty if none is. nan is over every budget."""
    over = [(error, budget) for error, budget in errors_and_budgets if not error <= budget]
    return f"gradients are wrong: error {over[0][0]:.2g}, budget {over[0][1]:.2g}" if over else ""


def worst(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative error of a gradient."""
    names = [name for name in oracle.DIFFERENTIABLE if name in actual]
    return max(oracle.error(actual[name], expected[name]) for name in names)


class ShardedStep(Step):
    """A step of one rank, which holds a slice of ``linear_weight``.

    An error is the largest of all ranks. Its budget comes from PyTorch's own loss on the whole
    weight, with the gradient cut into the same slices.
    """

    def expected(self) -> dict[str, Tensor]:
        return self.on_whole(lambda whole: oracle.expected_in_chunks("linear", whole, self.grad))

    def errors(self, expected: Mapping[str, Tensor]) -> list[float]:
        return [torchrun.largest(error) for error in super().errors(expected)]

    def budgets(self, expected: Mapping[str, Tensor], dtype: str) -> list[float]:
        fn = oracle.NATIVE["linear"]
        native = self.on_whole(lambda whole: oracle.evaluate(fn, whole, self.grad))
        return [oracle.budget(torchrun.largest(worst(native, expected)), dtype)]

    def on_whole(
        self, evaluate: Callable[[dict[str, Any]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``evaluate`` returns for the whole weight, with this rank's slice of its gradient.

        The first rank alone evaluates, and sends each rank its part.
        """
        slices, parts = torchrun.gather(self.given["linear_weight"]), None
        if slices is not None:
            weight = torch.cat(slices).to(self.grad.device)
            results = evaluate({**self.given, "linear_weight": weight})
            results = {name: tensor.cpu() for name, tensor in results.items()}
            rows = results["linear_weight"].split([len(slice_) for slice_ in slices])
            parts = [{**results, "linear_weight": own.clone()} for own in rows]
        part = torchrun.scatter(parts)
        return {name: tensor.to(self.grad.device) for name, tensor in part.items()}


def step_of(loss: impls.Loss, given: Mapping[str, Any], copy: Tensor | None = None) -> Step:
    """The step of ``loss`` at its level. ``copy`` is what a loss may overwrite, as in ``Step``."""
    return (ShardedStep if loss.level == "sharded" else Step)(loss, given, copy)


def converted(given: Mapping[str, Any], device: str, dtype: str | None = None) -> dict[str, Any]:
    """A loss's arguments: all tensors on ``device``, floating-point tensors in ``dtype``."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(
            device, getattr(torch, dtype) if dtype and value.is_floating_point() else None
        )

    return {name: convert(value) for name, value in given.items()}
