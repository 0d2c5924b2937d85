"""F.linear and log_softmax through torch.compile, which fuses the passes."""

import torch
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.compile import compile_whole
from impls.shared.reduction import (
    accumulation_dtype,
    first_order,
    reduce,
    result_dtype,
    target_distribution,
)


@compile_whole
def row_losses(input, linear_weight, linear_bias, y, target_weight, smoothing):
    """Hidden states (N, D), weight (V, D), bias (V,) and q of N rows to losses (N,)."""
    x = F.linear(input, linear_weight, linear_bias).to(accumulation_dtype(input.dtype))  # (N, V)
    log_p = x.log_softmax(1)
    losses = -target_weight * log_p.gather(1, y[:, None]).squeeze(1)
    if smoothing is not None:
        losses = losses - (log_p * smoothing).sum(1)
    return losses


class FirstOrder(torch.autograd.Function):
    """The identity, whose second derivative raises: torch.compile may silently leave it out."""

    @staticmethod
    def forward(ctx, losses):
        return losses.view_as(losses)

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        return grad_losses


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
    losses = FirstOrder.apply(row_losses(input, linear_weight, linear_bias, *q))
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
