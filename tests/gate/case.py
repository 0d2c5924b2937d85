"""A case of the gate: a call to a loss, its tensors, and PyTorch's own loss for the same call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle

Tensors = dict[str, Tensor]

OPTIONS = ("reduction", "label_smoothing", "ignore_index", "softcap", "z_loss")


class Wrong(AssertionError):
    """The loss lacks a property. The message names the case that shows it."""


@dataclass(frozen=True)
class Case:
    """The sizes, dtype and options of a call. The seed determines its tensors."""

    n: int = 5
    v: int = 11
    d: int = 7
    dtype: str = "float32"
    reduction: str = "mean"
    label_smoothing: float = 0.0
    weighted: bool = False
    ignore_index: int = -100
    ignored: tuple[int, ...] = ()  # the numbers of the ignored rows
    softcap: float | None = None
    z_loss: float = 0.0
    scale: float = 1.0  # of the logits
    seed: int = 0

    def fit(self, loss: impls.Loss) -> "Case":
        """This case in a dtype that the loss has, without the options that the loss lacks.

        A loss without ``reduction`` is the mean.
        """
        dtypes, default = loss.support.dtypes, Case()
        dtype = self.dtype if self.dtype in dtypes else dtypes[0]
        needed = {"ignored": "ignore_index", "weighted": "weight"} | {
            name: name for name in OPTIONS
        }
        lacking = {
            field: getattr(default, field)
            for field, option in needed.items()
            if option not in loss.options
        }
        return replace(self, dtype=dtype, **lacking)

    def tensors(self, loss: impls.Loss) -> Tensors:
        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        if loss.level == "logits":
            tensors = {"input": self.scale * normal(self.n, self.v)}
        else:
            tensors = {
                "input": self.scale * normal(self.n, self.d),
                "linear_weight": normal(self.v, self.d) / self.d**0.5,
            }
            if "linear_bias" in loss.options:
                tensors["linear_bias"] = normal(self.v)
        target = torch.randint(self.v, (self.n,), generator=generator)
        target[list(self.ignored)] = self.ignore_index
        if self.weighted:
            tensors["weight"] = torch.rand(self.v, generator=generator) + 0.1
        device = loss.support.devices[0]
        converted = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return {**converted, "target": target.to(device)}

    def options(self, loss: impls.Loss) -> dict[str, Any]:
        """The options of this case that the loss has."""
        return {name: getattr(self, name) for name in OPTIONS if name in loss.options}

    def upstream(self) -> Tensor:
        """A random upstream gradient, in the shape of the value."""
        shape = (self.n,) if self.reduction == "none" else ()
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(shape, generator=generator).to(getattr(torch, self.dtype))

    def __str__(self) -> str:
        default = Case()
        parts = [f"N={self.n}", f"V={self.v}", self.dtype, f"reduction={self.reduction!r}"]
        for name in (
            *("label_smoothing", "weighted", "ignore_index", "ignored"),
            *("softcap", "z_loss", "scale"),
        ):
            if getattr(self, name) != getattr(default, name):
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)


def call(run: Callable[[], Any], where: str) -> Any:
    """Return ``run()``. If it raises, raise ``Wrong`` with the error in its message."""
    try:
        return run()
    except Exception as error:
        raise Wrong(f"the loss raises {describe(error)} ({where})") from error


def describe(error: Exception) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


def expect_close(actual: Tensor, expected: Tensor, allowed: float, what: str, where: str) -> None:
    """Raise ``Wrong`` unless the relative error of ``actual`` is less than ``allowed``."""
    error = oracle.error(actual, expected)
    expect(
        error < allowed,
        f"{what} is wrong: relative error {error:.2g}, allowed {allowed:.2g} ({where})",
    )


def call_loss(loss: impls.Loss, case: Case, tensors: Mapping[str, Tensor], about: str = "") -> Any:
    """Call the loss with the options of the case."""
    where = f"{case}{about and '; ' + about}"
    return call(lambda: loss.fn(**tensors, **case.options(loss)), where)


def forward(
    loss: impls.Loss, case: Case, tensors: Mapping[str, Tensor], need: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensors]:
    """The value, and copies of the arguments ``need``, by name, as leaves of the graph.

    Without ``need``, all differentiable arguments are leaves.
    """
    leaves = {
        name: tensors[name].clone().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    return call_loss(loss, case, {**tensors, **leaves}), leaves


def backward(
    value: Tensor, leaves: Tensors, upstream: Tensor, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    upstream = upstream.to(value)
    return torch.autograd.grad(value, tuple(leaves.values()), upstream, retain_graph=retain_graph)


def gradients(
    loss: impls.Loss,
    case: Case,
    tensors: Mapping[str, Tensor],
    upstream: Tensor,
    need: tuple[str, ...] | None = None,
) -> Tensors:
    """The gradients by argument. The loss gets the arguments themselves, not copies."""
    leaves = {
        name: tensors[name].detach().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    value = call_loss(loss, case, {**tensors, **leaves})
    grads = call(lambda: backward(value, leaves, upstream), str(case))
    return dict(zip(leaves, grads, strict=True))


def tolerance(loss: impls.Loss, float32: float) -> float:
    """The relative error that is allowed, where ``float32`` is allowed of a loss in float32.

    A loss without float32 is tried in its first dtype, which may round more.
    """
    dtype = Case().fit(loss).dtype
    return float32 if dtype == "float32" else max(float32, 2 * oracle.BAND[dtype])


def reductions(loss: impls.Loss) -> tuple[str, ...]:
    """The reductions that the loss offers. A loss without the option is the mean."""
    return ("mean", "sum", "none") if "reduction" in loss.options else ("mean",)
