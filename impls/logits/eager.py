"""From scratch: the loss is -log softmax, its gradient softmax - one_hot.

With p = softmax(x), the loss of a row x with target y is -log p_y. Its derivative is

    d(-log p_y)/dx_j = p_j - [j = y]        because        log p_y = x_y - log Σ_k exp(x_k)

Class weights and label smoothing only replace the one-hot [j = y] by another distribution q
(``impls.shared.reduction``):

    loss = -Σ_j q_j log p_j        d loss/dx_j = (Σ_k q_k) p_j - q_j

The mean over n rows divides both by n: (softmax - one_hot) / n.
"""

import torch

from impls.loss import check_call
from impls.shared.reduction import (
    TargetDistribution,
    accumulation_dtype,
    first_order,
    reduce,
    result_dtype,
    target_distribution,
)


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, y, target_weight, smoothing):
        x = input.to(accumulation_dtype(input.dtype))  # (N, V)
        m = x.amax(1, keepdim=True)  # exp(x) may overflow, exp(x - m) does not; p is the same
        log_s = (x - m).exp_().sum(1, keepdim=True).log()  # (N, 1), s = Σ_k exp(x_k - m)
        log_p_y = x.gather(1, y[:, None]) - m - log_s  # (N, 1)
        losses = -target_weight * log_p_y.squeeze(1)
        if smoothing is not None:
            # Not ``losses -=``: Dynamo of torch 2.11 then loses the gradient.
            losses = losses - (x - m).sub_(log_s).mul_(smoothing).sum(1)
        ctx.save_for_backward(input, m, log_s, y, target_weight, smoothing)
        return losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, m, log_s, *q = ctx.saved_tensors
        q = TargetDistribution(*q)
        p = (input - m).sub_(log_s).exp_()  # (N, V) softmax
        grad = p.mul_((q.mass * grad_losses)[:, None])
        grad.scatter_add_(1, q.y[:, None], -(q.target_weight * grad_losses)[:, None])
        if q.smoothing is not None:
            grad -= torch.outer(grad_losses, q.smoothing)
        return grad.to(input.dtype), None, None, None


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
