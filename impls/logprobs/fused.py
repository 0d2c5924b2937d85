"""Logits of one chunk of tokens at a time, made in forward and again in backward.

The chunks and the kernels are those of ``linear.fused`` (``impls.shared.chunks``). The upstream
gradient of a row is known in backward alone, so backward makes each chunk's logits again: four
matrix products in place of three. Forward keeps no more than a few numbers of each row.

Without entropies, -log p_y is a cross entropy, and its kernel does both passes. With entropies, the
passes are compiled by torch. From m = max_j x_j, s = Σ_j exp(x_j - m) and
t = Σ_j exp(x_j - m) (x_j - m), the entropy is H = log s - t / s.
"""

import torch

from impls.kernels import cross_entropy as kernel
from impls.shared.chunks import accumulate, logits_of_chunks, losses_and_gradient, new_gradients
from impls.shared.compile import compile_whole
from impls.shared.logprobs import checked, finite, gradient_beside_target
from impls.shared.reduction import (
    TargetDistribution,
    accumulation_dtype,
    first_order,
    put_at_target,
)

if not torch.cuda.is_available():  # CUDA needs no C++
    kernel.check_available()


@compile_whole
def row_statistics(x):
    """m, log s and the entropy of each row of the logits x, each (C, 1)."""
    x = x.to(accumulation_dtype(x.dtype))
    m = x.amax(1, keepdim=True)
    x = x - m
    exps = x.exp()
    s = exps.sum(1, keepdim=True)
    t = (exps * finite(x)).sum(1, keepdim=True)
    log_s = s.log()
    return m, log_s, log_s - t / s


@compile_whole
def write_gradient(x, m, log_s, entropy, u, v):
    """Write the logits' gradient over the logits x (C, V), but for the targets' columns."""
    return x.copy_(gradient_beside_target(x.to(m.dtype) - m - log_s, entropy, u, v))


def cross_entropy(x, y, upstream):
    """As ``impls.shared.chunks.losses_and_gradient``, for the targets y alone."""
    q = TargetDistribution(y, torch.ones_like(y, dtype=accumulation_dtype(x.dtype)), None)
    return losses_and_gradient(x, q, upstream, softcap=None, z_loss=0.0)


def gradient(x, y, statistics, u, v):
    """The gradient of the logits x (C, V), written over them, for u and v (C,)."""
    if v is None:
        return cross_entropy(x, y, -u)[1]
    m, log_s, entropy = statistics
    u, v = u[:, None], v[:, None]
    # The target's entry is computed apart: 1 - p_y would be lost in a p_y rounded to bfloat16.
    log_p_y = x.gather(1, y[:, None]).to(m.dtype) - m - log_s
    at_target = gradient_beside_target(log_p_y, entropy, u, v) + u
    grad = write_gradient(x, m, log_s, entropy, u, v)
    put_at_target(grad, y, at_target)
    return grad


class LogprobsAndEntropies(torch.autograd.Function):
    """Hidden states (N, D), weight (V, D), bias (V,), y (N,) and T to log p_y (N,) and H (N,).

    H is None unless it is asked for.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, y, temperature, with_entropy):
        dtype = accumulation_dtype(input.dtype)
        log_p_y = input.new_empty(len(input), dtype=dtype)
        statistics = input.new_empty(3 if with_entropy else 0, len(input), 1, dtype=dtype)
        for chunk, x in logits_of_chunks(input, weight, bias, temperature):
            if with_entropy:
                m, log_s, _ = of_chunk = row_statistics(x)
                torch.stack(of_chunk, out=statistics[:, chunk])
                x_y = x.gather(1, y[chunk, None]).to(dtype)
                log_p_y[chunk] = (x_y - m - log_s).squeeze(1)
            else:
                log_p_y[chunk] = -cross_entropy(x, y[chunk], None)[0]
        ctx.save_for_backward(input, weight, bias, y, statistics)
        ctx.temperature = temperature
        return log_p_y, statistics[2].squeeze(1).clone() if with_entropy else None

    @staticmethod
    @first_order
    def backward(ctx, u, v):
        *tensors, y, statistics = ctx.saved_tensors
        input, weight, _ = tensors
        u, v = (None if row is None else row / ctx.temperature for row in (u, v))
        grads = new_gradients(tensors, ctx.needs_input_grad[:3])
        grad_input, grad_weight, grad_bias = grads
        for chunk, x in logits_of_chunks(*tensors, ctx.temperature):
            rows = (None if row is None else row[chunk] for row in (u, v))
            g = gradient(x, y[chunk], statistics[:, chunk], *rows)
            dh = None if grad_input is None else grad_input[chunk]
            accumulate(g, input[chunk], weight, dh, grad_weight, chunk.start == 0)
            if grad_bias is not None:
                grad_bias += g.sum(0)
        grads = (None if grad is None else grad.to(input.dtype) for grad in grads)
        return *grads, None, None, None


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    input, linear_weight, linear_bias = checked(
        input, linear_weight, target, temperature, linear_bias
    )
    tensors = (input, linear_weight, linear_bias, target.contiguous())  # as the kernels need it
    both = LogprobsAndEntropies.apply(*tensors, temperature, entropy)
    return both if entropy else both[0]
