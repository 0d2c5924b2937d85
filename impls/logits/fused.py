"""One pass over each row in forward, which keeps its exponentials; backward scales them.

They become the gradient, the only (N, V) tensor made. The gradient itself, made in forward for an
upstream gradient not yet known, would cost a pass more. Where no gradient is wanted they are not
kept.
"""

import torch

from impls.loss import check_call
from impls.shared import rows
from impls.shared.reduction import Q, distribution, first_order, reduce, result_dtype


class RowLosses(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, softcap, z_loss, keep):
        ctx.exps = torch.empty_like(input) if keep else None
        losses, row = rows.losses(input, Q(y, at_y, everywhere), softcap, z_loss, ctx.exps)
        ctx.save_for_backward(input, y, at_y, everywhere, *row)
        ctx.options = softcap, z_loss
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, y, at_y, everywhere, *row = ctx.saved_tensors
        input, q = input.detach(), Q(y, at_y, everywhere)
        exps, ctx.exps = ctx.exps, None
        if exps is None:  # they are an earlier backward's gradient
            exps = torch.empty_like(input)
            rows.losses(input, q, *ctx.options, exps)
        grad = rows.gradient(input, q, rows.Row(*row), grad_losses, *ctx.options, exps)
        return grad, None, None, None, None, None, None


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
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    keep = input.requires_grad and torch.is_grad_enabled()
    losses = RowLosses.apply(input, *q, softcap, z_loss, keep)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
