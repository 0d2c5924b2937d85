"""What our implementations share: what a row is to predict, how the rows' losses become one.

Class weights w and label smoothing ε make of a target y the (unnormalised) distribution over
classes

    q_j = (1 - ε) w_y [j = y] + ε/V w_j

With p = softmax(x) a row's loss is -Σ_j q_j log p_j and its gradient (Σ_j q_j) p_j - q_j. So an
implementation knows q alone: weights, smoothing and ignored rows are settled here, on vectors of N
and of V.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from impls.shared.compile import is_fake


class Q(NamedTuple):
    """The distribution q above, for N targets, in the dtype that sums are taken in."""

    y: Tensor  # (N,) the target, or 0 where it is ignored
    at_y: Tensor  # (N,) (1 - ε) w_y
    everywhere: Tensor | None  # (V,) ε/V w; None if ε = 0

    @property
    def total(self) -> Tensor:  # (N,) Σ_j q_j
        return self.at_y if self.everywhere is None else self.at_y + self.everywhere.sum()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum in: float32 for float16 and bfloat16, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def result_dtype(input: Tensor) -> torch.dtype:
    """The dtype of the loss: the input's or, as for torch's own loss under autocast, float32."""
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else input.dtype


def is_at_hand(tensor: Tensor) -> bool:
    """Whether its elements can be looked at now: on the CPU, neither traced nor fake.

    On CUDA the host would wait. Under a caller's ``torch.compile`` or ``FakeTensorMode`` there are
    no elements yet, or never.
    """
    if torch.compiler.is_compiling() or is_fake(tensor):
        return False
    return tensor.device.type == "cpu"


def check_range(target: Tensor, vocab: int | Tensor, ignore_index: int) -> None:
    """Raise ``IndexError``, naming it, for a target on the CPU outside [0, vocab) and not ignored.

    Where that cannot be seen now (``is_at_hand``) it is left, as in torch, to the kernel that reads
    the target.
    """
    if is_at_hand(target):
        outside = target[((target < 0) | (target >= vocab)) & (target != ignore_index)]
        if outside.numel():
            raise IndexError(f"target {outside[0].item()} is out of range for {vocab} classes")


def distribution(
    target: Tensor,
    weight: Tensor | None,
    vocab: int,
    dtype: torch.dtype,
    ignore_index: int,
    label_smoothing: float,
) -> Q:
    """q for targets (N,) and class weights (V,), in the dtype that sums of ``dtype`` are taken in.

    Raises ``IndexError`` for a target out of range: see ``check_range``.
    """
    check_range(target, vocab, ignore_index)
    y = target.masked_fill(target == ignore_index, 0)
    ones = torch.ones((), dtype=accumulation_dtype(dtype), device=target.device)
    w = ones.expand(vocab) if weight is None else weight.to(ones.dtype)  # (V,)
    at_y = (1 - label_smoothing) * w[y]
    if label_smoothing == 0:
        return Q(y, at_y, None)
    if weight is None:  # one number, which a kernel need not read for each class
        return Q(y, at_y, (label_smoothing / vocab * ones).expand(vocab))
    return Q(y, at_y, label_smoothing / vocab * w)


def norm(
    target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, dtype: torch.dtype
) -> Tensor:
    """What the sum of the rows' losses is divided by: for "sum" 1, for "mean" their number.

    With class weights w it is Σ w[target], as in torch. If all rows are ignored, or there are none,
    it is 0 and the mean nan.
    """
    counted = (target != ignore_index).to(dtype)
    if reduction == "sum":
        return counted.new_ones(())
    if weight is None:
        return counted.sum()
    return (weight[target.masked_fill(target == ignore_index, 0)].to(dtype) * counted).sum()


def reduce(
    losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """Mean, sum or none of ``losses`` (N,), where ignored rows count nothing: see ``norm``."""
    losses = losses.masked_fill(target == ignore_index, 0)
    if reduction == "none":
        return losses
    return losses.sum() / norm(target, weight, ignore_index, reduction, losses.dtype)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A hand-made ``backward`` that raises when asked for a graph (``create_graph=True``).

    torch's own ``once_differentiable`` raises only if the upstream gradient needs one: a penalty on
    the gradient it takes, silently, for a constant.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivatives; logits.builtin has")
        return backward(ctx, *grads)

    return checked
