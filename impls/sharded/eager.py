"""From scratch: the ranks agree on each row's maximum, then on its sum of exponentials.

Each rank makes the logits x = h Wᵀ + b of its own V_r classes. Together they find m = max_j x_j of
each row and then, in one all-reduce,

    s = Σ_j exp(x_j - m)        x_y - m        t = Σ_j q_j (x_j - m), for what smoothing puts on j

so that each has the loss, log p_y = x_y - m - log s, and in backward the gradient of its own
logits, (Σ q) p - q. From that the slice's dW and db follow; dh is the sum over the ranks.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.reduction import accumulation_dtype, first_order, result_dtype
from impls.shared.shards import Shard, all_reduce, at_target, reduce, shard


class Replicated(torch.autograd.Function):
    """The hidden states, which every rank has: each gives its part of their gradient."""

    @staticmethod
    def forward(ctx, input, group):
        ctx.group = group
        return input.view_as(input)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        whole = grad.to(
            accumulation_dtype(grad.dtype), copy=True, memory_format=torch.contiguous_format
        )
        all_reduce(whole, ctx.group)
        return whole.to(grad.dtype), None


class RowLosses(torch.autograd.Function):
    """This rank's (N, V_r) logits and its share of q to (N,) losses, the same on every rank."""

    @staticmethod
    def forward(ctx, input, group, softcap, z_loss, *fields):
        own = Shard(*fields)
        x = input.to(accumulation_dtype(input.dtype))
        x = x if softcap is None else softcap * torch.tanh(x / softcap)
        top = x.amax(1) if x.shape[1] else x.new_full((len(x),), -torch.inf)
        m = all_reduce(top, group, dist.ReduceOp.MAX)[:, None]  # (N, 1)
        x = x - m
        t = torch.zeros_like(top) if own.everywhere is None else (x * own.everywhere).sum(1)
        s, x_y, t = all_reduce(
            torch.stack([x.exp().sum(1), at_target(x, own.y, own.here), t]), group
        )
        log_s = s.log()
        losses = -own.at_y * (x_y - log_s) - (t - own.spread * log_s)
        lse = m.squeeze(1) + log_s
        ctx.save_for_backward(x, m, log_s, *fields)
        ctx.softcap, ctx.z_loss, ctx.dtype = softcap, z_loss, input.dtype
        return losses + z_loss * lse.square() if z_loss else losses

    @staticmethod
    @first_order
    def backward(ctx, grad_losses):
        x, m, log_s, *fields = ctx.saved_tensors
        own = Shard(*fields)
        total = own.total
        if ctx.z_loss:
            total = total + 2 * ctx.z_loss * (m.squeeze(1) + log_s)
        grad = (x - log_s[:, None]).exp_().mul_((total * grad_losses)[:, None])  # (N, V_r)
        if grad.shape[1]:
            at_y = (own.at_y * grad_losses).where(own.here, 0)
            grad.scatter_add_(1, own.y[:, None], -at_y[:, None])
        if own.everywhere is not None:
            grad -= torch.outer(grad_losses, own.everywhere)
        if ctx.softcap is not None:
            grad *= 1 - ((x + m) / ctx.softcap).square()
        return grad.to(ctx.dtype), *[None] * (3 + len(Shard._fields))


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
    own = shard(linear_weight, target, weight, group, ignore_index, reduction, label_smoothing)
    x = F.linear(Replicated.apply(input, group), linear_weight, linear_bias)  # (N, V_r)
    losses = RowLosses.apply(x, group, softcap, z_loss, *own)
    return reduce(losses, own.counted, own.norm, reduction).to(result_dtype(input))
