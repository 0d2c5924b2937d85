"""Online log-sum-exp over slices of the vocabulary: forward holds no second (N, V) tensor.

A row's maximum m and s = Σ exp(x - m) over the classes seen so far are enough: a slice that raises
m to m' turns s into s exp(m - m') + Σ_slice exp(x - m'). Likewise t = Σ q (x - m), for what label
smoothing puts on every class, loses (m' - m) for each q in it. (Milakov & Gimelshein 2018, Online
normalizer calculation for softmax.)
"""

import torch

from impls.loss import check_call
from impls.shared.reduction import (
    Q,
    accumulation_dtype,
    distribution,
    first_order,
    reduce,
    result_dtype,
)

CHUNK = 4096  # classes a slice


class RowLosses(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere):
        dtype = accumulation_dtype(input.dtype)
        # Not -inf, of which a row's first slice may consist: -inf - -inf is nan.
        m = input.new_full((len(input), 1), torch.finfo(dtype).min, dtype=dtype)  # (N, 1)
        s = torch.zeros_like(m)
        t = torch.zeros_like(m)
        for start in range(0, input.shape[1], CHUNK):
            x = input[:, start : start + CHUNK].to(dtype)  # (N, chunk)
            rise = -m + (m := torch.maximum(m, x.amax(1, keepdim=True)))
            x = x - m
            if everywhere is not None:
                t -= rise * everywhere[:start].sum()
                t += (x * everywhere[start : start + CHUNK]).sum(1, keepdim=True)
            s = s * (-rise).exp_() + x.exp_().sum(1, keepdim=True)
        log_s = s.log()
        losses = -at_y * (input.gather(1, y[:, None]) - m - log_s).squeeze(1)
        if everywhere is not None:
            # Not in place: Dynamo of torch 2.11 then loses the gradient.
            losses = losses - (t - everywhere.sum() * log_s).squeeze(1)
        ctx.save_for_backward(input, m, log_s, y, at_y, everywhere)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, m, log_s, *q = ctx.saved_tensors
        y, at_y, everywhere = q = Q(*q)
        total = (q.total * grad_losses)[:, None]  # (N, 1)
        grad = torch.empty_like(input)  # (N, V)
        for start in range(0, input.shape[1], CHUNK):
            chunk = slice(start, start + CHUNK)
            grad_chunk = (input[:, chunk] - m).sub_(log_s).exp_().mul_(total)
            if everywhere is not None:
                grad_chunk -= torch.outer(grad_losses, everywhere[chunk])
            grad[:, chunk] = grad_chunk
        # The target's entry is made anew: p - 1 from a p already rounded to bfloat16 would be lost.
        x_y = input.gather(1, y[:, None])
        q_y = at_y if everywhere is None else at_y + everywhere[y]
        at_target = (x_y - m - log_s).exp() * total - (q_y * grad_losses)[:, None]
        # Not scatter_, which on a CPU copies a bfloat16 tensor twice (torch 2.13).
        grad[torch.arange(len(y), device=y.device), y] = at_target.squeeze(1).to(grad.dtype)
        return grad, None, None, None


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
