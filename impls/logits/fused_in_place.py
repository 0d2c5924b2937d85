"""Forward reads each row once; backward writes the gradient over the logits.

No (N, V) tensor is made. Forward leaves the logits as they are; backward overwrites them. A second
backward raises, and so does the backward of another function that needs the logits.
"""

import torch

from impls.loss import Support, check_call
from impls.shared import rows
from impls.shared.reduction import (
    TargetDistribution,
    first_order,
    reduce,
    result_dtype,
    target_distribution,
)

support = Support(overwrites_input=True)


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, y, target_weight, smoothing, softcap, z_loss):
        q = TargetDistribution(y, target_weight, smoothing)
        losses, row = rows.losses(input, q, softcap, z_loss)
        ctx.save_for_backward(input, *q, *row)
        ctx.options = softcap, z_loss
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, y, target_weight, smoothing, *row = ctx.saved_tensors
        input, row = input.detach(), rows.RowStatistics(*row)
        q = TargetDistribution(y, target_weight, smoothing)
        return rows.gradient(input, q, row, grad_losses, *ctx.options), *[None] * 5


def cross_entropy(
    input,
    target,
    weight=None,
    *,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    softcap=None,
    z_loss=0.0,
):
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q, softcap, z_loss)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
