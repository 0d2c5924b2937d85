"""What a row of logits must predict, and how the rows' losses become one number.

N tokens, V classes. Class weights w and label smoothing ε turn the target y of a row into an
unnormalised distribution q over the classes:

    q_j = a [j = y] + b_j        a = (1 - ε) w_y        b_j = ε/V w_j

With p = softmax(x), a row x of logits has

    loss = -Σ_j q_j log p_j        d loss/dx_j = (Σ_k q_k) p_j - q_j

So an implementation needs q alone. ``target_distribution`` makes q from targets, class weights and
smoothing, as vectors of N or V elements. An ignored row has the q of class 0. ``reduce`` then sets
the loss of an ignored row to 0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from impls.shared.compile import is_fake


class TargetDistribution(NamedTuple):
    """The distribution q of N targets, in the dtype that sums are taken in."""

    y: Tensor  # (N,) the target; 0 in an ignored row
    target_weight: Tensor  # (N,) a = (1 - ε) w_y
    smoothing: Tensor | None  # (V,) b = ε/V w; None if ε = 0

    @property
    def mass(self) -> Tensor:
        """(N,) Σ_j q_j."""
        a, b = self.target_weight, self.smoothing
        return a if b is None else a + b.sum()

    @property
    def at_target(self) -> Tensor:
        """(N,) q_y."""
        a, b = self.target_weight, self.smoothing
        return a if b is None else a + b[self.y]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum in: float32 for float16 and bfloat16, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def result_dtype(input: Tensor) -> torch.dtype:
    """The dtype of the loss: the input's or, under autocast, float32, as for torch's own loss."""
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else input.dtype


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a gradient for at least one of the tensors."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def has_cpu_values(tensor: Tensor) -> bool:
    """Whether the elements can be read now: the tensor is on the CPU, neither traced nor fake.

    To read an element on CUDA, the host would wait. Under a caller's ``torch.compile`` or
    ``FakeTensorMode`` a tensor has no elements.
    """
    if torch.compiler.is_compiling() or is_fake(tensor):
        return False
    return tensor.device.type == "cpu"


def check_range(target: Tensor, vocab: int | Tensor, ignore_index: int) -> None:
    """Raise ``IndexError`` with the first target that is outside [0, vocab) and not ignored.

    If the targets cannot be read now (``has_cpu_values``), nothing is checked here. Then the
    kernel that reads the targets must check the targets, as in torch.
    """
    if has_cpu_values(target):
        outside = target[((target < 0) | (target >= vocab)) & (target != ignore_index)]
        if outside.numel():
            raise IndexError(f"target {outside[0].item()} is out of range for {vocab} classes")


def clear_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """The targets (N,), with 0 in each ignored row, so that each is an index."""
    return target * (target != ignore_index)


def locate(y: Tensor, start: Tensor | int, size: int) -> tuple[Tensor, Tensor]:
    """Where the targets y (N,) are in the slice of classes [start, start + size).

    Returns the column in the slice (N,), 0 where the slice does not hold the target, and whether
    the slice holds it (N,).
    """
    column = y - start
    inside = (column >= 0) & (column < size)
    return column.masked_fill_(~inside, 0), inside


def target_distribution(
    target: Tensor,
    weight: Tensor | None,
    vocab: int,
    dtype: torch.dtype,
    ignore_index: int,
    label_smoothing: float,
) -> TargetDistribution:
    """q for targets (N,) and class weights (V,), in the dtype that sums of ``dtype`` are taken in.

    Raises ``IndexError`` for a target out of range, as ``check_range`` says.
    """
    check_range(target, vocab, ignore_index)
    y = clear_ignored(target, ignore_index)
    summed, a, b = accumulation_dtype(dtype), 1 - label_smoothing, label_smoothing / max(vocab, 1)
    if weight is None:
        target_weight = torch.full_like(y, a, dtype=summed)
        # One number, expanded: a kernel need not read it for each class.
        smoothing = y.new_full((), b, dtype=summed).expand(vocab) if label_smoothing else None
    else:
        w = weight.to(summed)
        target_weight = a * w[y]
        smoothing = b * w if label_smoothing else None
    return TargetDistribution(y, target_weight, smoothing)


def row_losses(q: TargetDistribution, log_p_y: Tensor, log_s: Tensor, t: Tensor | None) -> Tensor:
    """-Σ_j q_j log p_j (N,), where log p_j = x_j - m - log s.

    log p_y, log s and t = Σ_j b_j (x_j - m) are (N, 1). Without smoothing t is not read.
    """
    losses = -q.target_weight * log_p_y.squeeze(1)
    if q.smoothing is None:
        return losses
    assert t is not None
    # Not in place: Dynamo of torch 2.11 then loses the gradient of a Function that calls this.
    return losses - (t - q.smoothing.sum() * log_s).squeeze(1)


def put_at_target(grad: Tensor, y: Tensor, entries: Tensor) -> None:
    """Write ``entries`` (N, 1) over those of ``grad`` (N, V) in the targets' columns y (N,)."""
    # Not scatter_, which on a CPU copies a bfloat16 tensor twice (torch 2.13).
    grad[torch.arange(len(y), device=y.device), y] = entries.squeeze(1).to(grad.dtype)


def denominator(
    target: Tensor, counted: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype
) -> Tensor | None:
    """The number that divides the sum of the ``counted`` rows' losses; None for "none".

    For "sum" it is 1. For "mean" it is the number of counted rows or, with class weights,
    Σ w[target] over these rows, as in torch. It is 0 if no row counts: then the mean is nan.
    """
    if reduction == "none":
        return None
    if reduction == "sum":
        return target.new_ones((), dtype=dtype)
    if weight is None:
        return counted.sum(dtype=dtype)
    return (weight[target * counted].to(dtype) * counted).sum()


def shares(counted: Tensor, denominator: Tensor) -> Tensor:
    """The share (N,) of each row's loss in the result, which is its upstream gradient.

    It is 1 / denominator where a row is ``counted``, else 0. If no row counts the mean is nan, and
    all shares are 0: the gradients are 0 as in torch, so such a batch does not ruin a model.
    """
    return torch.where(counted, 1 / denominator, 0)


def reduce(
    losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """The mean, the sum, or all of the ``losses`` (N,), with 0 for each ignored row."""
    counted = target != ignore_index
    divisor = denominator(target, counted, weight, reduction, losses.dtype)
    return reduce_counted(losses, counted, divisor)


def reduce_counted(losses: Tensor, counted: Tensor, denominator: Tensor | None) -> Tensor:
    """Σ losses / denominator over the ``counted`` rows; without a denominator all losses (N,)."""
    losses = losses.masked_fill(~counted, 0)
    return losses if denominator is None else losses.sum() / denominator


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a hand-written ``backward`` raise under ``create_graph=True``.

    torch's own ``once_differentiable`` raises only if the upstream gradient requires a gradient. If
    the upstream gradient requires none, a penalty on the gradient is silently a constant.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivatives; logits.builtin has")
        return backward(ctx, *grads)

    return checked
