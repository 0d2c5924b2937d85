"""The fused losses' work on hidden states: chunks of C tokens, and the matrix products of a chunk.

N tokens, D hidden, V vocabulary. With hidden states h (N, D), weight W (V, D) and bias b, the
logits are x = h Wᵀ + b. With g = dloss/dx (C, V), a chunk adds to the gradients

    dh = g W        dW += gᵀ h        db += Σ_n g_n
"""

import torch

from impls.kernels import kernel_for
from impls.loss import INTERPRETED
from impls.shared import rows
from impls.shared.reduction import accumulation_dtype

MOST_CHUNKS = 16  # in half precision
WEIGHT_ROWS = 4096  # of dW at a time, where a product has another dtype than dW


def tokens_per_chunk(input):
    """C, for hidden states (N, D). A chunk reads W twice and dW once: a small C waits for memory.

    C V logits are a quarter of W for wide hidden states. The curve is in
    docs/experiments/0005-chunks-of-tokens.md. In half precision each chunk rounds dW once more, so
    there are at most 16 (docs/experiments/0030-more-than-two-billion-logits.md).
    """
    tokens, hidden = input.shape
    if input.itemsize > 2:
        return max(hidden // 4, 384)
    return max(hidden // 4, 512, -(-tokens // MOST_CHUNKS))


def logits_of_chunks(input, linear_weight, linear_bias, temperature=1.0):
    """For each chunk of tokens: the chunk, a slice of the N tokens, and its logits x (C, V).

    The product divides the logits by the temperature, before it rounds them. The chunks are of
    equal size. All are made in the same buffer, which the caller may overwrite.
    """
    n = len(input)
    chunks = max(-(-n // tokens_per_chunk(input)), 1)
    size = -(-n // chunks)
    buffer = input.new_empty(size, len(linear_weight))
    for start in range(0, n, max(size, 1)):
        chunk = slice(start, start + size)
        h = input[chunk]
        x = buffer[: len(h)]
        if temperature == 1:
            torch.mm(h, linear_weight.T, out=x)
        else:
            torch.addmm(x, h, linear_weight.T, beta=0, alpha=1 / temperature, out=x)
        if linear_bias is not None:
            x.add_(linear_bias, alpha=1 / temperature)
        yield chunk, x


def kept_exponentials(x, softcap):
    """The tensor that keeps exp(x - m) of the logits x: x itself, or None where it is not kept.

    A softcap needs the logits again. In half precision inductor's code that keeps it is slow.
    """
    return x if softcap is None and x.itemsize > 2 else None


def losses_and_gradient(x, q, upstream, softcap, z_loss):
    """The losses (C,) of logits x (C, V) and, given ``upstream`` (C,), the gradient, over x.

    Without ``upstream`` the gradient is None. A kernel computes both; on CUDA none has float64.
    """
    if not (x.is_cuda and x.dtype == torch.float64):
        kernel = kernel_of_chunks(x)
        if upstream is None:
            return kernel.losses_and_gradient(x, *q, None, softcap, z_loss)[0], None
        return kernel.losses_and_gradient_(x, *q, upstream, softcap, z_loss), x
    exps = kept_exponentials(x, softcap)
    losses, row = rows.losses(x, q, softcap, z_loss, exps)
    if upstream is None:
        return losses, None
    return losses, rows.gradient(x, q, row, upstream, softcap, z_loss, exps)


def kernel_of_chunks(x):
    """The module of the kernel for x. In Triton's interpreter the Triton kernel runs on the CPU."""
    if INTERPRETED and x.dtype != torch.float64:
        from impls.kernels import cross_entropy_triton

        return cross_entropy_triton
    return kernel_for(x)


def new_gradients(tensors, needed, is_summed=False, accum_dtype=None):
    """dh, dW and db for the chunks to write to; None in place of each that is not ``needed``.

    dW has ``accum_dtype``, by default its own, and db the dtype that sums are taken in. dh and dW
    are 0, not empty, if ``is_summed``: then the first chunk is added to them too.
    """
    input, linear_weight, _ = tensors
    for_input, for_weight, for_bias = needed
    is_summed = is_summed or accum_dtype is not None or len(input) == 0
    make = torch.zeros_like if is_summed else torch.empty_like
    bias_dtype = accumulation_dtype(linear_weight.dtype)
    return (
        make(input) if for_input else None,
        make(linear_weight, dtype=accum_dtype) if for_weight else None,
        linear_weight.new_zeros(len(linear_weight), dtype=bias_dtype) if for_bias else None,
    )


def accumulate(g, h, linear_weight, grad_input, grad_weight, is_first):
    """dh = g W and dW += gᵀ h, each if its tensor is not None.

    For the first chunk dW = gᵀ h, so that an empty dW need not be filled with 0.
    """
    if grad_input is not None:
        torch.mm(g, linear_weight, out=grad_input)
    if grad_weight is not None and grad_weight.dtype == g.dtype:
        torch.addmm(grad_weight, g.T, h, beta=0 if is_first else 1, out=grad_weight)
    elif grad_weight is not None:
        parts = zip(grad_weight.split(WEIGHT_ROWS), g.split(WEIGHT_ROWS, 1), strict=True)
        for part, columns in parts:
            part += columns.T @ h


def scale(grad, factor):
    """Multiply ``grad``, whose memory has no gaps, by the number ``factor``, in place.

    A factor of 1 writes nothing.
    """
    kernel_of_chunks(grad).scale_(grad, factor)
