"""Logits of one slice of the vocabulary at a time; backward makes them again.

Forward keeps three numbers of each row, over the classes seen so far:

    m = max_j x_j        s = Σ_j exp(x_j - m)        t = Σ_j exp(x_j - m) (x_j - m)

A slice that raises m by r turns s into exp(-r) s, and t into exp(-r) (t - r s). Then its own terms
are added. At the end log p_y = x_y - m - log s, and the entropy is H = log s - t / s. Backward is
that of ``impls.linear.chunked_vocab``, with the gradients of ``impls.shared.logprobs``.
"""

import torch

from impls.shared import online
from impls.shared.logprobs import checked, finite, gradient_beside_target
from impls.shared.reduction import accumulation_dtype, first_order


class LogprobsAndEntropies(torch.autograd.Function):
    """Hidden states (N, D), weight (V, D), bias (V,), y (N,) and T to log p_y (N,) and H (N,).

    H is None unless it is asked for.
    """

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, y, temperature, with_entropy):
        tensors = (input, linear_weight, linear_bias, y)
        m, s, t = online.start_sums(len(input), accumulation_dtype(input.dtype), input.device)
        x_y = torch.zeros_like(m)
        for _, x, column, inside in online.logits_of_slices(*tensors, temperature):
            x_y = torch.where(inside, x.gather(1, column), x_y)
            before, m = m, torch.maximum(m, x.amax(1, keepdim=True))
            r = m - before
            x -= m
            exps = x.exp()
            if with_entropy:
                t = (-r).exp() * (t - r * s) + exps.mul(finite(x)).sum(1, keepdim=True)
            s = (-r).exp() * s + exps.sum(1, keepdim=True)
        log_s = s.log()
        entropy = (log_s - t / s).squeeze(1) if with_entropy else None
        ctx.save_for_backward(*tensors, m, log_s, entropy)
        ctx.temperature = temperature
        return (x_y - m - log_s).squeeze(1), entropy

    @staticmethod
    @first_order
    def backward(ctx, u, v):
        input, linear_weight, linear_bias, y, m, log_s, entropy = ctx.saved_tensors
        u, v, entropy = (None if row is None else row[:, None] for row in (u, v, entropy))
        tensors = (input, linear_weight, linear_bias)

        def gradients():
            slices = online.logits_of_slices(*tensors, y, ctx.temperature)
            for part, x, column, inside in slices:
                g = gradient_beside_target(x.sub_(m).sub_(log_s), entropy, u, v)  # (N, chunk)
                g.scatter_add_(1, column, u * inside)
                g /= ctx.temperature
                yield part, g

        needed = ctx.needs_input_grad[:3]
        grads = online.gradients_of_slices(gradients(), *tensors, needed, m.dtype)
        return *grads, None, None, None


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    input, linear_weight, linear_bias = checked(
        input, linear_weight, target, temperature, linear_bias
    )
    tensors = (input, linear_weight, linear_bias, target)
    both = LogprobsAndEntropies.apply(*tensors, temperature, entropy)
    return both if entropy else both[0]
