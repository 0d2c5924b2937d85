"""What the sharded losses share: which classes are this rank's, and what its targets are there.

The slices lie in the order of the ranks, so a rank's classes begin where those of the ranks before
it end. A target's logit and its class weight only the rank that holds it knows: to their sum over
the ranks the others give 0. With q as in ``impls.shared.reduction``, ε/V is of all V classes, not
of V_r.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from impls.shared.reduction import accumulation_dtype, check_range


class Shard(NamedTuple):
    """What a rank that holds V_r of the V classes knows of the q of N targets.

    ``y`` and ``everywhere`` are of its slice, the others the same on every rank.
    """

    y: Tensor  # (N,) the target's column in the slice, or 0 where another rank holds it
    here: Tensor  # (N,) whether this rank does
    at_y: Tensor  # (N,) (1 - ε) w_y
    everywhere: Tensor | None  # (V_r,) ε/V w; None if ε = 0
    spread: Tensor  # () Σ_j ε/V w_j, over all V
    counted: Tensor  # (N,) whether the row is not ignored
    norm: (
        Tensor  # () what the sum of the losses is divided by, as impls.shared.reduction.norm has it
    )

    @property
    def total(self) -> Tensor:  # (N,) Σ_j q_j, over all V
        return self.at_y + self.spread


def all_reduce(tensor: Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """``tensor`` itself, contiguous as NCCL wants it, which becomes the sum over the ranks."""
    dist.all_reduce(tensor, op, group)
    return tensor


def slice_sizes(linear_weight: Tensor, group: Any) -> Tensor:
    """V_r of each rank, (R,). It stays on the device: nothing waits."""
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=linear_weight.device)
    sizes[dist.get_rank(group)] = len(linear_weight)
    return all_reduce(sizes, group)


def shard(
    linear_weight: Tensor,
    target: Tensor,
    weight: Tensor | None,
    group: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Shard:
    """For the slice (V_r, D), its class weights (V_r,), and all targets (N,).

    The ranks tell each other how many classes they hold and, if there are class weights, w_y.
    """
    sizes = slice_sizes(linear_weight, group)
    offset, vocab = sizes[: dist.get_rank(group)].sum(), sizes.sum()
    check_range(target, vocab, ignore_index)
    n, size = len(target), len(linear_weight)
    counted = target != ignore_index
    y = target.masked_fill(~counted, 0) - offset
    here = (y >= 0) & (y < size)
    y = y.masked_fill(~here, 0)
    vocab = vocab.to(accumulation_dtype(linear_weight.dtype))
    if weight is None:
        w, w_y, w_sum = vocab.new_ones(()).expand(size), vocab.new_ones(n), vocab
    else:
        w = weight.to(vocab.dtype)
        mine = torch.cat([at_target(w.expand(n, size), y, here), w.sum(0, keepdim=True)])
        w_y, w_sum = all_reduce(mine, group).split([n, 1])
    return Shard(
        y,
        here,
        at_y=(1 - label_smoothing) * w_y,
        everywhere=label_smoothing / vocab * w if label_smoothing > 0 else None,
        spread=(label_smoothing / vocab * w_sum).squeeze(),
        counted=counted,
        norm=vocab.new_ones(()) if reduction == "sum" else w_y.masked_fill(~counted, 0).sum(),
    )


def at_target(x: Tensor, y: Tensor, here: Tensor) -> Tensor:
    """(N,) of (N, V_r): each row's entry at its target, or 0 where another rank holds it."""
    if x.shape[1] == 0:
        return x.new_zeros(len(x))
    return x.gather(1, y[:, None]).squeeze(1).where(here, 0)


def reduce(losses: Tensor, counted: Tensor, norm: Tensor, reduction: str) -> Tensor:
    """As ``impls.shared.reduction.reduce``."""
    losses = losses.masked_fill(~counted, 0)
    return losses if reduction == "none" else losses.sum() / norm
