"""Forward keeps each row's exponentials; backward scales them to the gradient.

The exponentials exp(x - m) become the gradient, the only (N, V) tensor that is made. To make the
gradient itself in forward would cost another pass, as the upstream gradient is not yet known. If no
gradient is wanted, forward keeps no exponentials.
"""

import torch

from impls.loss import check_call
from impls.shared import rows
from impls.shared.reduction import (
    TargetDistribution,
    first_order,
    needs_gradient,
    reduce,
    result_dtype,
    target_distribution,
)


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, y, target_weight, smoothing, softcap, z_loss, with_grad):
        q = TargetDistribution(y, target_weight, smoothing)
        ctx.exps = torch.empty_like(input) if with_grad else None
        losses, row = rows.losses(input, q, softcap, z_loss, ctx.exps)
        ctx.save_for_backward(input, *q, *row)
        ctx.options = softcap, z_loss
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, y, target_weight, smoothing, *row = ctx.saved_tensors
        input, row = input.detach(), rows.RowStatistics(*row)
        q = TargetDistribution(y, target_weight, smoothing)
        exps, ctx.exps = ctx.exps, None
        if exps is None:  # an earlier backward has turned them into its gradient
            exps = torch.empty_like(input)
            rows.losses(input, q, *ctx.options, exps)
        return rows.gradient(input, q, row, grad_losses, *ctx.options, exps), *[None] * 6


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
    losses = RowLosses.apply(input, *q, softcap, z_loss, needs_gradient(input))
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
