"""What a loss is: its three signatures, what it supports, and what a call to it may look like.

N tokens, D hidden, V vocabulary, R ranks.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

# The levels, and the name that the function of each has.
FUNCTIONS = {
    "logits": "cross_entropy",
    "linear": "linear_cross_entropy",
    "sharded": "linear_cross_entropy",
}


class CrossEntropy(Protocol):
    """The signature of ``torch.nn.functional.cross_entropy``: its names, defaults and meaning."""

    def __call__(
        self,
        input: Tensor,  # (N, V) logits
        target: Tensor,  # (N,) int64
        weight: Tensor | None = None,  # (V,) class weights
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor: ...


class LinearCrossEntropy(Protocol):
    """That of ``torch.nn.functional.linear_cross_entropy``: logits are input @ linear_weight.T."""

    def __call__(
        self,
        input: Tensor,  # (N, D) hidden states
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,) int64
        *,
        linear_bias: Tensor | None = None,  # (V,)
        weight: Tensor | None = None,  # (V,) class weights
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor: ...


class ShardedLinearCrossEntropy(Protocol):
    """``LinearCrossEntropy`` of a vocabulary that the R ranks of ``group`` hold a slice each of.

    V_r classes are this rank's, which may be none; slices are in the order of the ranks. What is
    over the vocabulary is this rank's slice, and so is its gradient. All else is the same on every
    rank: input, target (numbers among all V = Σ V_r classes), options, the upstream gradient; and
    so are the value and the gradient of the input. Every rank calls it, and its backward.
    """

    def __call__(
        self,
        input: Tensor,  # (N, D) hidden states
        linear_weight: Tensor,  # (V_r, D)
        target: Tensor,  # (N,) int64
        *,
        group: ProcessGroup | None = None,  # None is torch's default group
        linear_bias: Tensor | None = None,  # (V_r,)
        weight: Tensor | None = None,  # (V_r,) class weights
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Support:
    """Where an implementation runs. A file that says nothing else runs wherever torch does.

    ``deviations`` are the properties of the gate that a rival is known to lack, each with what it
    does instead; a gate that finds one mended fails, so that it is struck off here. On CUDA,
    ``cuda_deviations`` are added to them.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    overwrites_input: bool = False
    even_slices: bool = False  # a sharded one: its slices must be those of torch.chunk
    deviations: Mapping[str, str] = field(default_factory=dict)
    cuda_dtypes: tuple[str, ...] | None = None  # None: those above
    cuda_deviations: Mapping[str, str] = field(default_factory=dict)

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        """The dtypes that it takes on ``device``, "cpu" or "cuda"."""
        return self.cuda_dtypes if device == "cuda" and self.cuda_dtypes else self.dtypes

    def deviations_on(self, device: str) -> dict[str, str]:
        """Its deviations on ``device``, "cpu" or "cuda"."""
        return {**self.deviations, **(self.cuda_deviations if device == "cuda" else {})}


# Triton's interpreter runs a kernel on the CPU, one program at a time: for values, not for times.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_support(**more: Any) -> Support:
    """The ``Support`` of a Triton kernel: CUDA or, interpreted, the CPU.

    The interpreter multiplies bfloat16 as if it were an integer (triton 3.9), so it has none.
    """
    if INTERPRETED:
        return Support(("cpu",), ("float32", "float16"), **more)
    return Support(("cuda",), ("float32", "bfloat16", "float16"), **more)


# The deviation of a Triton kernel that is no operator of torch's, while it is interpreted.
UNTRACEABLE: Mapping[str, str] = (
    {"in_a_compiled_step": "torch.compile cannot trace Triton's interpreter"} if INTERPRETED else {}
)


@dataclass(frozen=True)
class Loss:
    """One implementation: ``fn`` is a ``CrossEntropy`` or, at another level, that level's kind."""

    name: str
    level: str
    fn: Callable[..., Tensor]
    support: Support
    summary: str

    @property
    def options(self) -> tuple[str, ...]:
        """The keyword arguments that it takes: what is not in its signature it does not support.

        Without ``group``, which says where it runs, not what it computes.
        """
        return tuple(
            parameter.name
            for parameter in inspect.signature(self.fn).parameters.values()
            if parameter.default is not parameter.empty and parameter.name != "group"
        )

    def as_linear(self) -> "Loss":
        """A loss of logits with ``F.linear`` in front, which is what a linear one computes."""

        def linear_cross_entropy(
            input: Tensor,
            linear_weight: Tensor,
            target: Tensor,
            *,
            linear_bias: Tensor | None = None,
            **options: Any,
        ) -> Tensor:
            input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
            checked = (options.get("weight"), options.get("reduction", "mean"))
            smoothing = options.get("label_smoothing", 0.0)
            check_call(input, target, *checked, smoothing, linear_weight, linear_bias)
            return self.fn(F.linear(input, linear_weight, linear_bias), target, **options)

        keywords = [*inspect.signature(linear_cross_entropy).parameters.values()][:-1]
        theirs = inspect.signature(self.fn).parameters
        keywords += [
            theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in self.options
        ]
        linear_cross_entropy.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        name, summary = f"linear.{self.name}", f"F.linear, then {self.name}."
        support = replace(self.support, overwrites_input=False)  # the logits are nobody else's
        return Loss(name, "linear", linear_cross_entropy, support, summary)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The operands of a matrix product as ``torch.autocast`` would have them: cast, if it is on."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def check_call(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    linear_weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
) -> None:
    """Raise ``ValueError``, naming both sides, if shapes, dtypes or options do not go together.

    Reads no element, so it costs nothing on any device.
    """
    classes = input if linear_weight is None else linear_weight
    if input.dim() != 2 or classes.dim() != 2 or target.shape != input.shape[:1]:
        raise ValueError(
            f"input must be (N, {'V' if linear_weight is None else 'D'}) and target (N,): "
            f"got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    if linear_weight is not None and linear_weight.shape[1] != input.shape[1]:
        raise ValueError(
            f"input (N, D) and linear_weight (V, D) differ in D: "
            f"got {tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    if not input.is_floating_point() or target.dtype != torch.int64:
        raise ValueError(
            f"input must be floating point and target int64: got {input.dtype} and {target.dtype}"
        )
    vocab = classes.shape[0 if linear_weight is not None else 1]
    for name, vector in (("weight", weight), ("linear_bias", linear_bias)):
        if vector is not None and vector.shape != (vocab,):
            raise ValueError(f"{name} must be ({vocab},), one a class: got {tuple(vector.shape)}")
    for name, other in (
        ("linear_weight", linear_weight),
        ("linear_bias", linear_bias),
        ("weight", weight),
    ):
        if other is not None and other.dtype != input.dtype:
            raise ValueError(f"input is {input.dtype}, {name} is {other.dtype}: they must agree")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none': got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1]: got {label_smoothing}")
