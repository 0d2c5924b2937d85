"""A Triton kernel that makes the gradient in forward: hardly more bytes than a copy of the logits.

Backward multiplies the gradient by the upstream one, unless that is 1. A second backward raises, as
the first one gave the gradient away. With "none" backward reads the logits again, as each row has
an upstream gradient of its own.
"""

import torch

from impls.kernels import cross_entropy_triton as kernel
from impls.loss import check_call, triton_support
from impls.shared.reduction import distribution, first_order, norm, reduce, result_dtype

support = triton_support()


class Rows(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, softcap, z_loss):
        ctx.save_for_backward(input, y, at_y, everywhere)
        ctx.options = softcap, z_loss
        losses, _ = kernel.rows(input, y, at_y, everywhere, None, softcap, z_loss)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        _, grad = kernel.rows(*ctx.saved_tensors, upstream.contiguous(), *ctx.options)
        return grad, *[None] * 5


class Total(torch.autograd.Function):
    """(N, V) logits, the N rows of q, and which count, to Σ losses / total."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, counted, total, softcap, z_loss, in_place):
        q_and_share = y, at_y, everywhere, counted / total
        if in_place:
            losses = kernel.rows_(input, *q_and_share, softcap, z_loss)
            ctx.grad = input.detach()
        else:
            losses, ctx.grad = kernel.rows(input, *q_and_share, softcap, z_loss)
        return losses.masked_fill(~counted, 0).sum() / total

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("forward makes one gradient, and an earlier backward has taken it")
        kernel.scale_(grad, upstream)
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
    return reduced(
        input, target, weight, ignore_index, reduction, label_smoothing, (softcap, z_loss, False)
    )


def reduced(input, target, weight, ignore_index, reduction, label_smoothing, options):
    """The loss; ``options`` are softcap, z_loss, and whether the gradient replaces the logits."""
    check_call(input, target, weight, reduction, label_smoothing)
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    rows = input if input.stride(1) == 1 else input.contiguous()
    if reduction == "none" or not (input.requires_grad and torch.is_grad_enabled()):
        losses = Rows.apply(rows, *q, *options[:2])
        losses = reduce(losses, target, weight, ignore_index, reduction)
    else:
        total = norm(target, weight, ignore_index, reduction, q.at_y.dtype)
        losses = Total.apply(rows, *q, target != ignore_index, total, *options)
    return losses.to(result_dtype(input))
