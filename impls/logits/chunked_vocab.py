"""One slice of the vocabulary at a time: forward makes no (N, V) tensor.

Forward is the online log-sum-exp of ``impls.shared.online``. Backward makes softmax(x) again, a
slice at a time, and writes the gradient, the only (N, V) tensor that is made.
"""

import torch

from impls.loss import check_call
from impls.shared import online
from impls.shared.reduction import (
    TargetDistribution,
    accumulation_dtype,
    first_order,
    put_at_target,
    reduce,
    result_dtype,
    row_losses,
    target_distribution,
)


class RowLosses(torch.autograd.Function):
    """Logits (N, V) and q of N rows to losses (N,)."""

    @staticmethod
    def forward(ctx, input, y, target_weight, smoothing):
        n, vocab = input.shape
        dtype = accumulation_dtype(input.dtype)
        m, s, t = online.start_sums(n, dtype, input.device)
        for part in online.slices(vocab):
            online.add_slice(m, s, t, input[:, part].to(dtype), part, smoothing)
        log_s, x_y = s.log(), input.gather(1, y[:, None])
        ctx.save_for_backward(input, m, log_s, y, target_weight, smoothing)
        q = TargetDistribution(y, target_weight, smoothing)
        return row_losses(q, x_y - m - log_s, log_s, t)

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        input, m, log_s, *q = ctx.saved_tensors
        q = TargetDistribution(*q)
        factor = (q.mass * grad_losses)[:, None]  # (N, 1) of softmax(x)
        grad = torch.empty_like(input)  # (N, V)
        for part in online.slices(input.shape[1]):
            grad_part = (input[:, part] - m).sub_(log_s).exp_().mul_(factor)
            if q.smoothing is not None:
                grad_part -= torch.outer(grad_losses, q.smoothing[part])
            grad[:, part] = grad_part
        # The target's entry is computed apart: p_y - 1 would be lost in a p_y rounded to bfloat16.
        log_p_y = input.gather(1, q.y[:, None]) - m - log_s
        put_at_target(grad, q.y, log_p_y.exp() * factor - (q.at_target * grad_losses)[:, None])
        return grad, None, None, None


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
