"""Two passes over the rows: their sums in forward, their gradient in backward, and no more.

The gradient is the only (N, V) tensor made. It is made in backward, where the upstream gradient is
known: made in forward it would have to be read and written again, to be scaled.
"""

import torch

from impls import rows
from impls.loss import check_call
from impls.reduction import Q, distribution, first_order, reduce, result_dtype


class RowLosses(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses; ``in_place``, backward overwrites them."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, softcap, z_loss, in_place):
        q = Q(y, at_y, everywhere)
        losses, m, log_s = rows.losses(input, q, softcap, z_loss)
        ctx.save_for_backward(input, m, log_s, *q)
        ctx.options = softcap, z_loss, in_place
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, m, log_s, *q = ctx.saved_tensors
        grad = rows.gradient(input.detach(), Q(*q), m, log_s, grad_losses, *ctx.options)
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
    losses = RowLosses.apply(input, *q, softcap, z_loss, False)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
