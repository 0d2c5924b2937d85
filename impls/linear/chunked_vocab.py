"""Logits of one slice of the vocabulary at a time; backward makes them again.

Forward is the online log-sum-exp of ``impls.shared.online``. With logits x = h Wᵀ + b and
g = dloss/dx, backward adds up dh = Σ g W over the slices, and writes each slice's rows of dW = gᵀ h
and of db = Σ_n g_n.
"""

import torch

from impls.loss import autocast, check_call
from impls.shared import online
from impls.shared.reduction import (
    TargetDistribution,
    accumulation_dtype,
    first_order,
    reduce,
    result_dtype,
    row_losses,
    target_distribution,
)


class RowLosses(torch.autograd.Function):
    """Hidden states (N, D), weight (V, D), bias (V,) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, y, target_weight, smoothing):
        tensors = (input, linear_weight, linear_bias)
        m, s, t = online.start_sums(len(input), accumulation_dtype(input.dtype), input.device)
        x_y = torch.zeros_like(m)
        for part, x, column, inside in online.logits_of_slices(*tensors, y):
            x_y = torch.where(inside, x.gather(1, column), x_y)
            online.add_slice(m, s, t, x, part, smoothing, out=x)
        log_s, q = s.log(), TargetDistribution(y, target_weight, smoothing)
        ctx.save_for_backward(*tensors, m, log_s, *q)
        return row_losses(q, x_y - m - log_s, log_s, t)

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, linear_weight, linear_bias, m, log_s, *q = ctx.saved_tensors
        tensors, q = (input, linear_weight, linear_bias), TargetDistribution(*q)
        factor = (q.mass * grad_losses)[:, None]  # (N, 1) of softmax(x)
        target_grad = (-q.target_weight * grad_losses)[:, None]

        def gradients():
            for part, x, column, inside in online.logits_of_slices(*tensors, q.y):
                g = x.sub_(m).sub_(log_s).exp_().mul_(factor)  # (N, chunk)
                g.scatter_add_(1, column, target_grad * inside)
                if q.smoothing is not None:
                    g -= torch.outer(grad_losses, q.smoothing[part])
                yield part, g

        needed = ctx.needs_input_grad[:3]
        grads = online.gradients_of_slices(gradients(), *tensors, needed, m.dtype)
        return *grads, None, None, None


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
    vocab, dtype = len(linear_weight), input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, linear_weight, linear_bias, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
