"""The loss of logits by a kernel that makes the gradient in forward.

A kernel is a module of ``impls.kernels``, in C++ or Triton. Forward reads the logits and writes
their gradient, for an upstream gradient of 1. Backward multiplies it by the upstream gradient,
unless that is 1, and gives it away: a second backward raises. The logits are not kept. For "none"
each row has its own upstream gradient, so backward reads the logits again.
"""

import torch

from impls.loss import check_call
from impls.shared.reduction import (
    denominator,
    first_order,
    needs_gradient,
    reduce,
    result_dtype,
    shares,
    target_distribution,
)


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, kernel, input, y, target_weight, smoothing, softcap, z_loss):
        q = y, target_weight, smoothing
        ctx.save_for_backward(input, *q)
        ctx.kernel, *ctx.options = kernel, softcap, z_loss
        losses, _ = kernel.losses_and_gradient(input, *q, None, softcap, z_loss)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        tensors = *ctx.saved_tensors, upstream.contiguous()
        _, grad = ctx.kernel.losses_and_gradient(*tensors, *ctx.options)
        return None, grad, *[None] * 5


class ReducedLoss(torch.autograd.Function):
    """Logits (N, V), q of N rows, and the divisor of their sum, to Σ loss / divisor.

    The rows' upstream gradients ``share`` (N,) are 1 / divisor, and 0 in ignored rows.
    """

    @staticmethod
    def forward(
        ctx, kernel, input, y, target_weight, smoothing, share, divisor, in_place, *options
    ):
        arguments = input, y, target_weight, smoothing, share, *options
        if in_place:
            losses = kernel.losses_and_gradient_(*arguments)
            ctx.grad = input.detach()
        else:
            losses, ctx.grad = kernel.losses_and_gradient(*arguments)
        ctx.kernel = kernel
        # A row with a share of 0 has a loss of 0, also where its logits are nan.
        return losses.sum() / divisor

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("an earlier backward has taken the gradient that forward made")
        ctx.kernel.scale_(grad, upstream)
        return None, grad, *[None] * 8


def cross_entropy(
    kernel,
    input,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    softcap,
    z_loss,
    *,
    in_place=False,
):
    """``F.cross_entropy`` by ``kernel``; ``in_place``: the gradient replaces the logits."""
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    # A gradient that overwrites the logits is scaled in backward: its memory must have no gaps.
    fits = input.is_contiguous() if in_place else input.stride(1) == 1
    x = input if fits else input.contiguous()
    if reduction == "none" or not needs_gradient(input):
        losses = RowLosses.apply(kernel, x, *q, softcap, z_loss)
        losses = reduce(losses, target, weight, ignore_index, reduction)
    else:
        counted = target != ignore_index
        divisor = denominator(target, counted, weight, reduction, q.target_weight.dtype)
        share = shares(counted, divisor)
        losses = ReducedLoss.apply(kernel, x, *q, share, divisor, in_place, softcap, z_loss)
    return losses.to(result_dtype(input))
