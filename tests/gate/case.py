"""A call of a loss: sizes, dtype and options, and what is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle

Tensors = dict[str, Tensor]


class Wrong(AssertionError):
    """A property that the loss lacks, in plain words, with the case that shows it."""


OPTIONS = ("reduction", "label_smoothing", "ignore_index", "softcap", "z_loss")


@dataclass(frozen=True)
class Case:
    """A call: sizes, dtype and options, from which seeded tensors follow."""

    n: int = 5
    v: int = 11
    d: int = 7
    dtype: str = "float32"
    reduction: str = "mean"
    label_smoothing: float = 0.0
    weighted: bool = False
    ignore_index: int = -100
    ignored: tuple[int, ...] = ()  # which rows
    softcap: float | None = None
    z_loss: float = 0.0
    scale: float = 1.0  # of the logits
    seed: int = 0

    def fit(self, loss: impls.Loss) -> "Case":
        """This case in a dtype that the loss takes, with the options that the loss has."""
        dtypes = loss.support.dtypes
        dtype = self.dtype if self.dtype in dtypes else dtypes[0]
        lacking = {name: getattr(Case, name) for name in OPTIONS if name not in loss.options}
        if "ignore_index" in lacking:
            lacking["ignored"] = ()
        if "weight" not in loss.options:
            lacking["weighted"] = False
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
        if "ignore_index" in loss.options:
            target[list(self.ignored)] = self.ignore_index
        if self.weighted and "weight" in loss.options:
            tensors["weight"] = torch.rand(self.v, generator=generator) + 0.1
        device = loss.support.devices[0]
        converted = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return {**converted, "target": target.to(device)}

    def options(self, loss: impls.Loss) -> dict[str, Any]:
        """The options of this case that the loss has."""
        return {name: getattr(self, name) for name in OPTIONS if name in loss.options}

    def upstream(self) -> Tensor:
        """A random gradient of the loss's value."""
        shape = (self.n,) if self.reduction == "none" else ()
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(shape, generator=generator).to(getattr(torch, self.dtype))

    def __str__(self) -> str:
        default = Case()
        said = [f"N={self.n}", f"V={self.v}", self.dtype, f"reduction={self.reduction!r}"]
        for name in (
            *("label_smoothing", "weighted", "ignore_index", "ignored"),
            *("softcap", "z_loss", "scale"),
        ):
            if getattr(self, name) != getattr(default, name):
                said.append(f"{name}={getattr(self, name)}")
        return ", ".join(said)


def tolerance(loss: impls.Loss, float32: float) -> float:
    """The relative error allowed of a loss of which ``float32`` is, if it has that dtype.

    Without it, the properties are tried in its first dtype, which rounds more.
    """
    dtype = Case().fit(loss).dtype
    return float32 if dtype == "float32" else max(float32, 2 * oracle.BAND[dtype])


def call(run: Callable[[], Any], where: str) -> Any:
    """What ``run()`` returns; ``Wrong`` if it raises, saying what."""
    try:
        return run()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise Wrong(f"it raises {type(error).__name__}: {reason} ({where})") from error


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


def forward(
    loss: impls.Loss, case: Case, tensors: Mapping[str, Tensor], need: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensors]:
    """The value, and the leaves (copies of the arguments) whose gradients can be asked for."""
    leaves = {
        name: tensors[name].clone().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    arguments = {**tensors, **leaves}
    return call(lambda: loss.fn(**arguments, **case.options(loss)), str(case)), leaves


def grads_of(
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
    """The gradients, by name, of the arguments as they are: not copies."""
    leaves = {
        name: tensors[name].detach().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    value = call(lambda: loss.fn(**{**tensors, **leaves}, **case.options(loss)), str(case))
    grads = call(lambda: grads_of(value, leaves, upstream), str(case))
    return dict(zip(leaves, grads, strict=True))


def same_value(loss: impls.Loss, case: Case, tensors: Tensors, right: float | list[float]) -> None:
    value = call(lambda: loss.fn(**tensors, **case.options(loss)), str(case))
    expected = torch.tensor(right, dtype=getattr(torch, case.dtype))
    expect(
        torch.equal(value.cpu().nan_to_num(nan=-1), expected.nan_to_num(nan=-1)),
        f"the value is {value.tolist()}, not {right} ({case})",
    )


def raises(
    kind: type[Exception], loss: impls.Loss, case: Case, tensors: Tensors, *words: str
) -> None:
    """Raise ``Wrong`` unless the call raises ``kind`` with all ``words`` in its message."""
    try:
        value = loss.fn(**tensors, **case.options(loss))
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        expect(not missing, f"the message {str(error)!r} does not name {' and '.join(missing)}")
    except Exception as error:
        raise Wrong(f"it raises {type(error).__name__}, not {kind.__name__}: {error}") from error
    else:
        named = " and ".join(words)
        raise Wrong(f"it returns {value.tolist()}, where {kind.__name__} is due, naming {named}")
