"""Two passes over each row; the second writes the gradient over the logits.

No (N, V) tensor is made. Forward leaves the logits as they are. After backward they are gone: a
second backward, or another function's that needs them, raises.
"""

import torch

from impls.loss import Support, check_call
from impls.shared import rows
from impls.shared.reduction import Q, distribution, first_order, reduce, result_dtype

support = Support(overwrites_input=True)


class RowLosses(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, softcap, z_loss):
        losses, row = rows.losses(input, Q(y, at_y, everywhere), softcap, z_loss)
        ctx.save_for_backward(input, y, at_y, everywhere, *row)
        ctx.options = softcap, z_loss
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, y, at_y, everywhere, *row = ctx.saved_tensors
        q, row = Q(y, at_y, everywhere), rows.Row(*row)
        grad = rows.gradient(input.detach(), q, row, grad_losses, *ctx.options)
        return grad, None, None, None, None, None


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
    losses = RowLosses.apply(input, *q, softcap, z_loss)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
