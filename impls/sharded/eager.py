"""From scratch: ranks share each row's maximum, then its sum of exponentials.

Each rank makes the logits x = h Wᵀ + b of its own V_r classes. Together the ranks find each row's
m = max_j x_j and then, in one all-reduce,

    s = Σ_j exp(x_j - m)        x_y - m        t = Σ_j b_j (x_j - m)

where b_j is what label smoothing puts on class j (``impls.shared.reduction``). So each rank has
log p_y = x_y - m - log s and the loss. In backward each rank has the gradient of its own logits,
(Σ q) p - q. The slice's dW and db follow from it; dh is the sum over the ranks.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.reduction import (
    accumulation_dtype,
    first_order,
    reduce_counted,
    result_dtype,
)
from impls.shared.shards import (
    LocalDistribution,
    ReplicatedInput,
    all_reduce,
    gather_local,
    local_distribution,
)


class RowLosses(torch.autograd.Function):
    """This rank's logits (N, V_r) and part of q to losses (N,), the same on every rank."""

    @staticmethod
    def forward(ctx, input, group, softcap, z_loss, *q):
        q = LocalDistribution(*q)
        x = input.to(accumulation_dtype(input.dtype))
        x = x if softcap is None else softcap * torch.tanh(x / softcap)
        m_r = x.amax(1) if x.shape[1] else x.new_full((len(x),), -torch.inf)
        m = all_reduce(m_r, group, dist.ReduceOp.MAX)[:, None]  # (N, 1)
        x = x - m
        s = x.exp().sum(1)
        t = torch.zeros_like(s) if q.smoothing is None else (x * q.smoothing).sum(1)
        x_y = gather_local(x, q.y, q.is_local)
        s, x_y, t = all_reduce(torch.stack([s, x_y, t]), group)
        log_s = s.log()
        losses = -q.target_weight * (x_y - log_s) - (t - q.smoothing_sum * log_s)
        ctx.save_for_backward(x, m, log_s, *q)
        ctx.softcap, ctx.z_loss, ctx.dtype = softcap, z_loss, input.dtype
        lse = m.squeeze(1) + log_s
        return losses + z_loss * lse.square() if z_loss else losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        x, m, log_s, *q = ctx.saved_tensors
        q = LocalDistribution(*q)
        factor = q.mass  # of softmax(x)
        if ctx.z_loss:
            factor = factor + 2 * ctx.z_loss * (m.squeeze(1) + log_s)
        grad = (x - log_s[:, None]).exp_().mul_((factor * grad_losses)[:, None])  # (N, V_r)
        if grad.shape[1]:
            target_weight = (q.target_weight * grad_losses).where(q.is_local, 0)
            grad.scatter_add_(1, q.y[:, None], -target_weight[:, None])
        if q.smoothing is not None:
            grad -= torch.outer(grad_losses, q.smoothing)
        if ctx.softcap is not None:
            grad *= 1 - ((x + m) / ctx.softcap).square()
        return grad.to(ctx.dtype), *[None] * (3 + len(q))


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    group=None,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    softcap=None,
    z_loss=0.0,
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    q = local_distribution(
        linear_weight, target, weight, group, ignore_index, reduction, label_smoothing
    )
    x = F.linear(ReplicatedInput.apply(input, group), linear_weight, linear_bias)  # (N, V_r)
    losses = RowLosses.apply(x, group, softcap, z_loss, *q)
    return reduce_counted(losses, q.counted, q.denominator).to(result_dtype(input))
