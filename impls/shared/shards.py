"""The sharded losses' part of q: which classes this rank holds, and where its targets are.

N tokens, V classes, V_r of them on rank r. The slices are in the order of the ranks, so a rank's
first class is the number of classes on the ranks before it. Only the rank that holds a target knows
the target's logit and class weight. The other ranks add 0 to the sum over the ranks. In q
(``impls.shared.reduction``), ε/V has all V classes, not V_r.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from impls.shared.reduction import (
    accumulation_dtype,
    check_range,
    clear_ignored,
    first_order,
    locate,
)


class LocalDistribution(NamedTuple):
    """A rank's part of the distribution q of N targets.

    ``y``, ``is_local`` and ``smoothing`` are about the rank's slice. The others are the same on
    every rank.
    """

    y: Tensor  # (N,) the target's column in the slice; 0 if another rank holds the target
    is_local: Tensor  # (N,) whether this rank holds the target
    target_weight: Tensor  # (N,) a = (1 - ε) w_y
    smoothing: Tensor | None  # (V_r,) b = ε/V w; None if ε = 0
    smoothing_sum: Tensor  # () Σ_j b_j over all V classes
    counted: Tensor  # (N,) whether the row is not ignored
    denominator: Tensor | None  # () as impls.shared.reduction.denominator; None for "none"

    @property
    def mass(self) -> Tensor:
        """(N,) Σ_j q_j over all V classes."""
        return self.target_weight + self.smoothing_sum

    @property
    def at_target(self) -> Tensor:
        """(N,) q_y, right where the target is local."""
        a, b = self.target_weight, self.smoothing
        return a if b is None else a + b[self.y]


def all_reduce(tensor: Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Write the sum over the ranks over ``tensor``, which is contiguous as NCCL wants it."""
    dist.all_reduce(tensor, op, group)
    return tensor


class ReplicatedInput(torch.autograd.Function):
    """The hidden states, the same on every rank. Backward sums the ranks' gradients of them."""

    @staticmethod
    def forward(ctx, input, group):
        ctx.group = group
        return input.view_as(input)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        whole = grad.to(
            accumulation_dtype(grad.dtype), copy=True, memory_format=torch.contiguous_format
        )
        all_reduce(whole, ctx.group)
        return whole.to(grad.dtype), None


def slice_sizes(linear_weight: Tensor, group: Any) -> Tensor:
    """V_r of each of the R ranks, (R,). It stays on the device: the host does not wait."""
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=linear_weight.device)
    sizes[dist.get_rank(group)] = len(linear_weight)
    return all_reduce(sizes, group)


def local_distribution(
    linear_weight: Tensor,
    target: Tensor,
    weight: Tensor | None,
    group: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> LocalDistribution:
    """This rank's part of q, for its slice (V_r, D) and class weights (V_r,), and all targets (N,).

    The ranks tell each other how many classes they hold and, with class weights, w_y. Raises
    ``IndexError`` for a target out of range, as ``impls.shared.reduction.check_range`` says.
    """
    sizes = slice_sizes(linear_weight, group)
    offset, vocab = sizes[: dist.get_rank(group)].sum(), sizes.sum()
    check_range(target, vocab, ignore_index)
    n, size = len(target), len(linear_weight)
    counted = target != ignore_index
    y, is_local = locate(clear_ignored(target, ignore_index), offset, size)
    vocab = vocab.to(accumulation_dtype(linear_weight.dtype))
    if weight is None:
        w, w_y, w_sum = vocab.new_ones(()).expand(size), vocab.new_ones(n), vocab
    else:
        w = weight.to(vocab.dtype)
        local = gather_local(w.expand(n, size), y, is_local)
        w_y, w_sum = all_reduce(torch.cat([local, w.sum(0, keepdim=True)]), group).split([n, 1])
    denominator = None
    if reduction != "none":
        one = vocab.new_ones(())
        denominator = one if reduction == "sum" else w_y.masked_fill(~counted, 0).sum()
    return LocalDistribution(
        y,
        is_local,
        target_weight=(1 - label_smoothing) * w_y,
        smoothing=label_smoothing / vocab * w if label_smoothing > 0 else None,
        smoothing_sum=(label_smoothing / vocab * w_sum).squeeze(),
        counted=counted,
        denominator=denominator,
    )


def gather_local(x: Tensor, y: Tensor, is_local: Tensor) -> Tensor:
    """Each row's entry of x (N, V_r) at its target, (N,); 0 if another rank holds the target."""
    if x.shape[1] == 0:
        return x.new_zeros(len(x))
    return x.gather(1, y[:, None]).squeeze(1).where(is_local, 0)


def pad_slices(
    x: Tensor, target: Tensor, linear_weight: Tensor, group: Any
) -> tuple[Tensor, Tensor]:
    """Slices of one size, for a loss that assumes that each rank holds as many classes.

    Each rank's logits x (N, V_r) get columns of -inf up to the largest V_r, R of which are the new
    vocabulary. The targets (N,) are numbered anew; outside [0, V) they are outside of it too. The
    host reads the sizes. If all are the same, nothing is copied.
    """
    sizes = slice_sizes(linear_weight, group)
    largest, ends = int(sizes.max()), sizes.cumsum(0)
    rank = torch.searchsorted(ends, target, right=True)
    target = rank * largest + target - F.pad(ends, (1, 0))[rank]
    missing = largest - x.shape[1]
    return F.pad(x, (0, missing), value=-torch.inf) if missing else x, target
