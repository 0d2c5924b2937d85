"""What a loss is: the signature of each level, what a loss supports, and which calls are valid.

A loss is at one of four levels: it takes logits, hidden states and the classifier's weight
(linear), or the same with a vocabulary that is split across ranks (sharded). A loss at level
logprobs takes the same as a linear loss, and gives log-probabilities instead of their mean. In
shapes, N is the number of tokens, D the hidden width, V the vocabulary and R the number of ranks.
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

# Each level, and the name of a loss's function at that level.
FUNCTIONS = {
    "logits": "cross_entropy",
    "linear": "linear_cross_entropy",
    "sharded": "linear_cross_entropy",
    "logprobs": "token_logprobs",
}
LEVELS_OF_ONE_PROCESS = tuple(level for level in FUNCTIONS if level != "sharded")


class CrossEntropy(Protocol):
    """A loss of logits, with the names, defaults and meaning of ``F.cross_entropy``."""

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
    """A loss of hidden states, as ``F.linear_cross_entropy``.

    The logits are input @ linear_weight.T + linear_bias.
    """

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
    """A ``LinearCrossEntropy`` whose vocabulary is split across the R ranks of ``group``.

    Rank r holds V_r classes, perhaps none; V = Σ_r V_r. The slices are in the order of the ranks.
    Each rank gives its slice of ``linear_weight``, ``linear_bias`` and ``weight``, and receives the
    gradients of its slice. The rest is the same on every rank: the input, the target (numbers
    among all V classes), the options, the upstream gradient, the value, and the gradient of the
    input. Every rank must call the loss, and its backward.
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


class TokenLogprobs(Protocol):
    """The log-probabilities of the targets, as reinforcement learning takes them.

    The logits are (input @ linear_weight.T + linear_bias) / temperature, and p = softmax(logits).
    The result is log p[n, target[n]], (N,). With ``entropy`` the result is a pair: the same, and
    the entropies -Σ_v p[n, v] log p[n, v], (N,). Both are differentiable in ``input``,
    ``linear_weight`` and ``linear_bias``.

    Both are float32 for arguments in half precision, since a trainer takes exp(new - old) of them.
    No target is ignored. A caller who masks tokens multiplies their log-probabilities by 0.
    Raises ``ValueError`` for a temperature that is not a positive number.
    """

    def __call__(
        self,
        input: Tensor,  # (N, D) hidden states
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (N,) int64
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        linear_bias: Tensor | None = None,  # (V,)
    ) -> Tensor | tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Support:
    """Where a loss runs, and what it does differently. By default it runs wherever torch does.

    ``deviations`` are the properties of the gate that a rival is known to lack, by name, each with
    what the rival does instead. The gate fails if a declared deviation does not show, so that the
    declaration is removed. ``cpu_deviations`` are added on a CPU, and ``cuda_deviations`` on CUDA.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    overwrites_input: bool = False
    even_slices: bool = False  # a sharded loss takes only the slices that torch.chunk makes
    deviations: Mapping[str, str] = field(default_factory=dict)
    cuda_dtypes: tuple[str, ...] | None = None  # None: the same as ``dtypes``
    cpu_deviations: Mapping[str, str] = field(default_factory=dict)
    cuda_deviations: Mapping[str, str] = field(default_factory=dict)

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        """The dtypes that the loss takes on ``device``, "cpu" or "cuda"."""
        return self.cuda_dtypes if device == "cuda" and self.cuda_dtypes else self.dtypes

    def deviations_on(self, device: str) -> dict[str, str]:
        """The loss's deviations on ``device``, "cpu" or "cuda"."""
        own = self.cuda_deviations if device == "cuda" else self.cpu_deviations
        return {**self.deviations, **own}


# Whether Triton's interpreter runs kernels, on the CPU, one program at a time. Their values are
# right; their times mean nothing.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_support(**more: Any) -> Support:
    """The ``Support`` of a Triton kernel: CUDA or, in Triton's interpreter, the CPU.

    ``more`` are further fields of ``Support``. The interpreter multiplies bfloat16 as if it were an
    integer (triton 3.9), so it has no bfloat16.
    """
    if INTERPRETED:
        return Support(("cpu",), ("float32", "float16"), **more)
    return Support(("cuda",), ("float32", "bfloat16", "float16"), **more)


# The deviation, in the interpreter, of a Triton kernel that is not registered as a torch operator.
INTERPRETER_DEVIATIONS: Mapping[str, str] = (
    {"in_a_compiled_step": "torch.compile cannot trace Triton's interpreter"} if INTERPRETED else {}
)


@dataclass(frozen=True)
class Loss:
    """One implementation of cross entropy."""

    name: str  # for ``impls.load``, such as "linear.fused"
    level: str  # a key of ``FUNCTIONS``
    fn: Callable[..., Any]  # a function with the signature of its level, above
    support: Support
    summary: str  # what the loss does, in one line

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the keyword arguments with a default, all that the loss supports.

        ``group`` is not an option: it determines where a sharded loss runs, not what it computes.
        """
        return tuple(
            parameter.name
            for parameter in inspect.signature(self.fn).parameters.values()
            if parameter.default is not parameter.empty and parameter.name != "group"
        )

    def as_linear(self) -> "Loss":
        """This loss of logits or at level logprobs as a linear loss with the same options.

        A loss of logits gets ``F.linear`` in front. Log-probabilities get a reduction behind, of
        the losses -log p. With ``entropy=True``, the entropies count with a weight of 0.
        """
        if self.level == "logprobs":
            fn, summary = _reduced(self.fn), f"{self.name}, then the mean of -log p."
        else:
            fn, summary = _after_linear(self.fn), f"F.linear, then {self.name}."
        # The signature names the options of this loss in place of **options.
        parameters = [*inspect.signature(fn).parameters.values()][:-1]
        own = inspect.signature(self.fn).parameters
        parameters += [
            own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in self.options
        ]
        fn.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        support = replace(self.support, overwrites_input=False)  # no caller has the logits
        return Loss(f"linear.{self.name}", "linear", fn, support, summary)


def _after_linear(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
        return cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)

    return linear_cross_entropy


def _reduced(token_logprobs: Callable[..., Any]) -> Callable[..., Tensor]:
    from impls.shared.reduction import result_dtype  # `history` runs commits that lack this module

    def linear_cross_entropy(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        reduction: str = "mean",
        **options: Any,
    ) -> Tensor:
        check_call(input, target, None, reduction, 0.0)
        result = token_logprobs(input, linear_weight, target, **options)
        if isinstance(result, tuple):
            # Backward computes the entropies' gradients too. Times 0 they change no result.
            result = result[0] + 0 * result[1]
        if reduction != "none":
            result = getattr(result, reduction)()
        return (-result).to(result_dtype(input))

    return linear_cross_entropy


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The operands of a matrix product in the dtype of ``torch.autocast``, where it is on."""
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
    """Raise ``ValueError`` if shapes or dtypes do not go together, or an option is invalid.

    The message names both sides. No element is read, so the host never waits for a device.
    """
    if input.dim() != 2 or target.shape != input.shape[:1]:
        raise ValueError(
            f"input must be (N, {'V' if linear_weight is None else 'D'}) and target (N,): "
            f"got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    if linear_weight is not None and linear_weight.shape[1:] != input.shape[1:]:
        raise ValueError(
            f"input must be (N, D) and linear_weight (V, D): "
            f"got {tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    if not input.is_floating_point() or target.dtype != torch.int64:
        raise ValueError(
            f"input must be floating point and target int64: got {input.dtype} and {target.dtype}"
        )
    vocab = input.shape[1] if linear_weight is None else len(linear_weight)
    for name, vector in (("weight", weight), ("linear_bias", linear_bias)):
        if vector is not None and vector.shape != (vocab,):
            raise ValueError(f"{name} must be ({vocab},), one per class: got {tuple(vector.shape)}")
    for name, other in (
        ("linear_weight", linear_weight),
        ("linear_bias", linear_bias),
        ("weight", weight),
    ):
        if other is not None and other.dtype != input.dtype:
            raise ValueError(f"input and {name} must agree: got {input.dtype} and {other.dtype}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none': got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1]: got {label_smoothing}")
