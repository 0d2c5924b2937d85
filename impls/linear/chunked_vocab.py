"""Logits a slice of the vocabulary at a time, never all: backward makes them again.

Forward is the online log-sum-exp: a row's maximum m and s = Σ exp(x - m) over the classes seen so
far; a slice that raises m to m' turns s into s exp(m - m') + Σ_slice exp(x - m'). Likewise t = Σ q
(x - m), for what label smoothing puts on every class, loses (m' - m) for each q in it. With logits
x = h Wᵀ + b and g = dloss/dx, backward adds up dh = Σ_slices g W and writes dW = gᵀ h, db = Σ_n g.
"""

import torch
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.reduction import (
    Q,
    accumulation_dtype,
    distribution,
    first_order,
    reduce,
    result_dtype,
)

CHUNK = 4096  # classes a slice


def slices(input, linear_weight, linear_bias, y):
    """Of each slice of the vocabulary: itself, its logits, the targets' columns, which it holds."""
    for start in range(0, len(linear_weight), CHUNK):
        chunk = slice(start, start + CHUNK)
        bias = None if linear_bias is None else linear_bias[chunk]
        x = F.linear(input, linear_weight[chunk], bias).to(accumulation_dtype(input.dtype))
        column = (y - start).clamp(0, x.shape[1] - 1)[:, None]  # (N, 1)
        here = ((y >= start) & (y < start + CHUNK))[:, None]  # (N, 1)
        yield chunk, x, column, here


class RowLosses(torch.autograd.Function):
    """(N, D) hidden states, (V, D) weight, (V,) bias and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, y, at_y, everywhere):
        dtype = accumulation_dtype(input.dtype)
        # Not -inf, of which a row's first slice may consist: -inf - -inf is nan.
        m = input.new_full((len(input), 1), torch.finfo(dtype).min, dtype=dtype)  # (N, 1)
        s, t, x_y = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
        for chunk, x, column, here in slices(input, linear_weight, linear_bias, y):
            x_y = torch.where(here, x.gather(1, column), x_y)
            rise = -m + (m := torch.maximum(m, x.amax(1, keepdim=True)))
            x -= m
            if everywhere is not None:
                t -= rise * everywhere[: chunk.start].sum()
                t += (x * everywhere[chunk]).sum(1, keepdim=True)
            s = s * (-rise).exp_() + x.exp_().sum(1, keepdim=True)
        log_s = s.log()
        losses = -at_y * (x_y - m - log_s).squeeze(1)
        if everywhere is not None:
            # Not in place: Dynamo of torch 2.11 then loses the gradient.
            losses = losses - (t - everywhere.sum() * log_s).squeeze(1)
        ctx.save_for_backward(input, linear_weight, linear_bias, m, log_s, y, at_y, everywhere)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, linear_weight, linear_bias, m, log_s, *q = ctx.saved_tensors
        y, at_y, everywhere = q = Q(*q)
        total, at_y = (q.total * grad_losses)[:, None], (at_y * grad_losses)[:, None]
        for_input, for_weight, for_bias, *_ = ctx.needs_input_grad
        grad_input = torch.zeros_like(input, dtype=m.dtype) if for_input else None
        grad_weight = torch.empty_like(linear_weight) if for_weight else None
        grad_bias = torch.empty_like(linear_bias) if for_bias else None
        for chunk, x, column, here in slices(input, linear_weight, linear_bias, y):
            grad = x.sub_(m).sub_(log_s).exp_().mul_(total)  # (N, chunk)
            grad.scatter_add_(1, column, -at_y * here)
            if everywhere is not None:
                grad -= torch.outer(grad_losses, everywhere[chunk])
            if for_bias:
                grad_bias[chunk] = grad.sum(0)
            grad = grad.to(input.dtype)
            if for_input:
                grad_input += grad @ linear_weight[chunk]
            if for_weight:
                torch.mm(grad.T, input, out=grad_weight[chunk])
        grad_input = grad_input.to(input.dtype) if for_input else None
        return grad_input, grad_weight, grad_bias, None, None, None


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    vocab = len(linear_weight)
    q = distribution(target, weight, vocab, input.dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, linear_weight, linear_bias, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
