"""What the fused losses of hidden states share: chunks of C tokens, and the products of one."""

import torch

from impls.loss import INTERPRETED
from impls.shared import rows
from impls.shared.reduction import is_at_hand

ROWS = 4096  # of dW at a time, where a product is not made in dW's dtype


def tokens_a_chunk(input):
    """C: each chunk reads W twice and dW once, so few tokens would wait for memory.

    C V logits are a quarter of W for wide hidden states. The curve is in
    docs/experiments/0005-chunks-of-tokens.md.
    """
    return max(input.shape[1] // 4, 512 if input.itemsize == 2 else 384)


def losses_and_gradient(x, q, upstream, softcap, z_loss):
    """Of (C, V) logits x the (C,) losses and, given ``upstream`` (C,), the gradient, in x's place.

    On CUDA by the Triton kernel, which has no float64.
    """
    if (x.is_cuda or INTERPRETED) and x.dtype != torch.float64:
        from impls.kernels import cross_entropy_triton as kernel

        if upstream is None:
            return kernel.rows(x, *q, None, softcap, z_loss)[0], None
        return kernel.rows_(x, *q, upstream, softcap, z_loss), x
    # Over the logits, unless a softcap needs them. In half precision inductor does that badly.
    exps = x if softcap is None and x.itemsize > 2 else None
    losses, row = rows.losses(x, q, softcap, z_loss, exps)
    if upstream is None:
        return losses, None
    return losses, rows.gradient(x, q, row, upstream, softcap, z_loss, exps)


def scale(grad, factor):
    """``grad`` times the number ``factor``, in place; where that is 1, nothing is written."""
    if grad.is_cuda or INTERPRETED:
        from impls.kernels import cross_entropy_triton as kernel

        kernel.scale_(grad, factor)
    elif not (is_at_hand(factor) and factor == 1):
        grad.mul_(factor)


def multiply(g, h, linear_weight, grad_input, grad_weight, beta):
    """dh = g W and dW = beta dW + gᵀ h, or in another dtype dW += gᵀ h, where they are wanted."""
    if grad_input is not None:
        torch.mm(g, linear_weight, out=grad_input)
    if grad_weight is not None and grad_weight.dtype == g.dtype:
        torch.addmm(grad_weight, g.T, h, beta=beta, out=grad_weight)
    elif grad_weight is not None:
        for part, columns in zip(grad_weight.split(ROWS), g.split(ROWS, 1), strict=True):
            part += columns.T @ h
