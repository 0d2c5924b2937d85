"""A C++ kernel: forward makes the gradient in the time of a copy of the logits.

Forward reads the logits and writes their gradient, for an upstream gradient of 1. Backward
multiplies it by the upstream gradient, unless that is 1, and gives it away: a second backward
raises. The logits are not kept. For "none" each row has its own upstream gradient, so backward
reads the logits again.
"""

import torch

from impls.kernels import cross_entropy as kernel
from impls.loss import Support, check_call
from impls.shared.chunks import scale
from impls.shared.reduction import (
    denominator,
    first_order,
    needs_gradient,
    reduce,
    reduce_counted,
    result_dtype,
    target_distribution,
)

kernel.check_available()
support = Support(devices=("cpu",))


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, y, target_weight, smoothing, softcap, z_loss):
        q = y, target_weight, smoothing
        ctx.save_for_backward(input, *q)
        ctx.options = softcap, z_loss
        losses, _ = kernel.losses_and_gradient(input, *q, None, softcap, z_loss)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        upstream = grad_losses.contiguous()
        _, grad = kernel.losses_and_gradient(*ctx.saved_tensors, upstream, *ctx.options)
        return grad, *[None] * 5


class ReducedLoss(torch.autograd.Function):
    """Logits (N, V) and q of N rows to Σ losses / denominator over the counted rows."""

    @staticmethod
    def forward(
        ctx, input, y, target_weight, smoothing, counted, denominator, softcap, z_loss, in_place
    ):
        arguments = input, y, target_weight, smoothing, counted / denominator, softcap, z_loss
        if in_place:
            losses = kernel.losses_and_gradient_(*arguments)
            ctx.grad = input.detach()
        else:
            losses, ctx.grad = kernel.losses_and_gradient(*arguments)
        return reduce_counted(losses, counted, denominator)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("an earlier backward has taken the gradient that forward made")
        scale(grad, upstream)
        return grad, *[None] * 8


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
    options = (ignore_index, reduction, label_smoothing, softcap, z_loss)
    return native_cross_entropy(input, target, weight, *options, in_place=False)


def native_cross_entropy(
    input,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    softcap,
    z_loss,
    *,
    in_place,
):
    """``cross_entropy``; ``in_place`` says whether the gradient replaces the logits."""
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    # A gradient that overwrites the logits is scaled in backward: its memory must have no gaps.
    fits = input.is_contiguous() if in_place else input.stride(1) == 1
    x = input if fits else input.contiguous()
    if reduction == "none" or not needs_gradient(input):
        losses = RowLosses.apply(x, *q, softcap, z_loss)
        losses = reduce(losses, target, weight, ignore_index, reduction)
    else:
        divisor = denominator(target, weight, ignore_index, reduction, q.target_weight.dtype)
        counted = target != ignore_index
        losses = ReducedLoss.apply(x, *q, counted, divisor, softcap, z_loss, in_place)
    return losses.to(result_dtype(input))
