"""A Triton kernel that reads each logit once and writes its gradient once: the bytes of a copy.

For "mean" and "sum" the gradient is made in forward. Backward multiplies it by the upstream
gradient, unless that is 1. A second backward raises, as the first one gave the gradient away. For
"none" backward reads the logits again. With ``in_place=True`` the gradient takes the logits' place.
"""

import torch

from impls.kernels import cross_entropy_triton as kernel
from impls.loss import check_call, triton_support
from impls.reduction import Q, distribution, first_order, norm, reduce, result_dtype

support = triton_support()


class Rows(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses, each with its own upstream gradient."""

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
    """(N, V) logits, q, and which rows count, to Σ losses / total. The gradient is made here."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere, counted, total, softcap, z_loss, in_place):
        share, q = counted / total, Q(y, at_y, everywhere)
        if in_place:
            losses, ctx.grad = kernel.rows_(input, *q, share, softcap, z_loss), input.detach()
        else:
            losses, ctx.grad = kernel.rows(input, *q, share, softcap, z_loss)
        return losses.masked_fill(~counted, 0).sum() / total

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("logits.triton makes one gradient, and an earlier backward has it")
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
    in_place=False,
):
    check_call(input, target, weight, reduction, label_smoothing)
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    rows = input if input.stride(1) == 1 else input.contiguous()
    if reduction == "none" or not (input.requires_grad and torch.is_grad_enabled()):
        losses = Rows.apply(rows, *q, softcap, z_loss)
        losses = reduce(losses, target, weight, ignore_index, reduction)
    else:
        total = norm(target, weight, ignore_index, reduction, q.at_y.dtype)
        counted = target != ignore_index
        losses = Total.apply(rows, *q, counted, total, softcap, z_loss, in_place)
    return losses.to(result_dtype(input))
