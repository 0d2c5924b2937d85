"""F.linear and log_softmax, as one would write them, through torch.compile."""

import torch
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.compile import compile_whole
from impls.shared.reduction import (
    accumulation_dtype,
    distribution,
    first_order,
    reduce,
    result_dtype,
)


@compile_whole
def row_losses(input, linear_weight, linear_bias, y, at_y, everywhere):
    """(N, D) hidden states, (V, D) weight, (V,) bias and the N rows of q to (N,) losses."""
    x = F.linear(input, linear_weight, linear_bias).to(accumulation_dtype(input.dtype))  # (N, V)
    log_p = x.log_softmax(1)
    losses = -at_y * log_p.gather(1, y[:, None]).squeeze(1)
    if everywhere is not None:
        losses = losses - (log_p * everywhere).sum(1)
    return losses


class FirstOrder(torch.autograd.Function):
    """The identity, whose second derivative raises: torch.compile may leave it out silently."""

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
    vocab = len(linear_weight)
    q = distribution(target, weight, vocab, input.dtype, ignore_index, label_smoothing)
    losses = FirstOrder.apply(row_losses(input, linear_weight, linear_bias, *q))
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
