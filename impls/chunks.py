"""What the fused losses of hidden states share: chunks of C tokens, and the products of one."""

import torch

ROWS = 4096  # of dW at a time, where a product is not made in dW's dtype


def tokens_a_chunk(input):
    """C: each chunk reads W twice and dW once, so few tokens would wait for memory.

    C V logits are a quarter of W for wide hidden states. reports/HISTORY.md has the curve.
    """
    return max(input.shape[1] // 4, 512 if input.itemsize == 2 else 384)


def multiply(g, h, linear_weight, grad_input, grad_weight, beta):
    """dh = g W and dW = beta dW + gᵀ h, or in another dtype dW += gᵀ h, where they are wanted."""
    if grad_input is not None:
        torch.mm(g, linear_weight, out=grad_input)
    if grad_weight is not None and grad_weight.dtype == g.dtype:
        torch.addmm(grad_weight, g.T, h, beta=beta, out=grad_weight)
    elif grad_weight is not None:
        for part, columns in zip(grad_weight.split(ROWS), g.split(ROWS, 1), strict=True):
            part += columns.T @ h
