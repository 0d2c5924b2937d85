"""From scratch: softmax, gather, -log; and by hand, softmax - one_hot.

With p = softmax(x), the loss of a row x whose target is y is -log p_y. Its derivative is

    d(-log p_y)/dx_j = p_j - [j = y]        because        log p_y = x_y - log Σ_k exp(x_k)

Class weights and label smoothing only replace the one-hot [j = y] by another distribution q
(``impls.shared.reduction``):

    loss = -Σ_j q_j log p_j        d loss/dx_j = (Σ_k q_k) p_j - q_j

The mean over n rows divides both by n: (softmax - one_hot) / n.
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


class RowLosses(torch.autograd.Function):
    """(N, V) logits and the N rows of q to (N,) losses."""

    @staticmethod
    def forward(ctx, input, y, at_y, everywhere):
        x = input.to(accumulation_dtype(input.dtype))  # (N, V)
        top = x.amax(1, keepdim=True)  # exp(x) overflows, exp(x - top) does not, and p is the same
        log_sum = (x - top).exp_().sum(1, keepdim=True).log()  # (N, 1)
        log_p_y = x.gather(1, y[:, None]) - top - log_sum  # (N, 1)
        losses = -at_y * log_p_y.squeeze(1)
        if everywhere is not None:
            # Not in place: Dynamo of torch 2.11 then loses the gradient.
            losses = losses - (x - top).sub_(log_sum).mul_(everywhere).sum(1)
        ctx.save_for_backward(input, top, log_sum, y, at_y, everywhere)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, top, log_sum, *q = ctx.saved_tensors
        y, at_y, everywhere = q = Q(*q)
        p = (input - top).sub_(log_sum).exp_()  # (N, V) softmax
        grad = p.mul_((q.total * grad_losses)[:, None])
        grad.scatter_add_(1, y[:, None], -(at_y * grad_losses)[:, None])
        if everywhere is not None:
            grad -= torch.outer(grad_losses, everywhere)
        return grad.to(input.dtype), None, None, None


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
