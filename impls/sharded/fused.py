"""linear.fused on a slice of the vocabulary; ranks add up each row's sums.

A chunk's logits give each row's maximum m_r and s_r = Σ_j exp(x_j - m_r) over this rank's classes,
in one pass that keeps the exponentials. With m = max_r m_r and s = Σ_r s_r exp(m_r - m), the factor
exp(m_r - m) / s turns them into softmax(x), so no logit is read again. A chunk's part of dh is
summed over the ranks while the products of the next chunk are made.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from impls.loss import autocast, check_call
from impls.shared import rows
from impls.shared.chunks import accumulate, kept_exponentials, logits_of_chunks, new_gradients
from impls.shared.reduction import (
    accumulation_dtype,
    first_order,
    needs_gradient,
    reduce_counted,
    result_dtype,
    shares,
)
from impls.shared.shards import LocalDistribution, all_reduce, gather_local, local_distribution


class ShardStatistics(NamedTuple):
    """Per-row statistics that backward needs, each (N,).

    m and log_s are the same on every rank.
    """

    m: Tensor  # max_j x_j over all V classes
    m_r: Tensor  # the maximum over this rank's classes
    log_s: Tensor  # log Σ_j exp(x_j - m) over all V classes
    x_y: Tensor  # the target's logit minus m; 0 on a rank that does not hold the target


def row_losses(input, q, group, softcap, z_loss, exps):
    """The losses (N,) of this rank's logits (N, V_r); ``exps`` receives exp(x - m_r)."""
    x_y = rows.cap(gather_local(input, q.y, q.is_local).to(q.target_weight.dtype), softcap)
    if input.shape[1]:
        m_r, s, t = rows.compiled_sums(input, q.smoothing, softcap, exps)
        m_r, s = m_r.squeeze(1), s.squeeze(1)
    else:
        m_r, s, t = torch.full_like(x_y, torch.finfo(x_y.dtype).min), torch.zeros_like(x_y), None
    m = all_reduce(m_r.clone(), group, dist.ReduceOp.MAX)
    shift = m_r - m
    t = torch.zeros_like(s) if t is None else t.squeeze(1) + shift * q.smoothing.sum()
    x_y = (x_y - m).where(q.is_local, 0)
    s, x_y_of_all, t = all_reduce(torch.stack([s * shift.exp(), x_y, t]), group)
    row = ShardStatistics(m, m_r, s.log(), x_y)
    losses = -q.target_weight * (x_y_of_all - row.log_s) - (t - q.smoothing_sum * row.log_s)
    if z_loss:
        losses = losses + z_loss * (m + row.log_s).square()
    return losses, row


def gradient(input, q, row, upstream, softcap, z_loss, exps):
    """The gradient of this rank's logits, given that of the losses, over ``exps`` or the logits."""
    if input.shape[1] == 0:
        return input
    factor = (q.mass + 2 * z_loss * (row.m + row.log_s)) * upstream  # of softmax(x)
    target_grad = (row.x_y - row.log_s).exp() * factor - q.at_target * upstream
    if softcap is not None:
        target_grad *= 1 - ((row.x_y + row.m) / softcap).square()
    others = upstream[:, None], q.smoothing, softcap
    if exps is None:
        m, log_s = row.m[:, None], row.log_s[:, None]
        grad = rows.compiled_gradient_from_logits(input, m, log_s, factor[:, None], *others)
    else:
        factor = factor * (row.m_r - row.m - row.log_s).exp()
        grad = rows.compiled_gradient_from_exps(exps, factor[:, None], input, *others)
    target = torch.arange(len(grad), device=grad.device), q.y
    grad[target] = target_grad.to(grad.dtype).where(q.is_local, grad[target])
    return grad


def losses_and_gradients(tensors, q, group, upstream, needed, softcap, z_loss):
    """The losses (N,) and, given ``upstream`` (N,), the gradients of the tensors that need one."""
    input, linear_weight, _ = tensors
    losses = q.target_weight.new_empty(len(input))
    grads = grad_input, grad_weight, grad_bias = new_gradients(tensors, needed)
    dh = None
    for chunk, x in logits_of_chunks(*tensors):
        q_chunk = q._replace(
            y=q.y[chunk], is_local=q.is_local[chunk], target_weight=q.target_weight[chunk]
        )
        exps = kept_exponentials(x, softcap)
        losses[chunk], row = row_losses(x, q_chunk, group, softcap, z_loss, exps)
        if upstream is None:
            continue
        # Not earlier: NCCL sums in the order of the calls, so the row's sums would wait for dh.
        pending = start_sum(dh, group)
        g = gradient(x, q_chunk, row, upstream[chunk], softcap, z_loss, exps)
        dh = None if grad_input is None else grad_input[chunk]
        accumulate(g, input[chunk], linear_weight, dh, grad_weight, chunk.start == 0)
        if grad_bias is not None:
            grad_bias += g.sum(0)
        finish_sum(pending)
    finish_sum(start_sum(dh, group))
    return losses, grads


def start_sum(dh, group):
    """Begin to sum ``dh`` over the ranks. ``finish_sum`` writes the sum over ``dh``."""
    if dh is None:
        return None
    whole = dh.to(accumulation_dtype(dh.dtype)).contiguous()  # NCCL takes no other
    return dh, whole, dist.all_reduce(whole, group=group, async_op=True)


def finish_sum(pending):
    if pending is not None:
        dh, whole, work = pending
        work.wait()
        dh.copy_(whole)


class FusedLoss(torch.autograd.Function):
    """Hidden states, this rank's weight and bias, and its part of q to the reduced losses."""

    @staticmethod
    def forward(ctx, input, weight, bias, group, with_grads, softcap, z_loss, *q):
        tensors, q = (input, weight, bias), LocalDistribution(*q)
        ctx.save_for_backward(*tensors, *q)
        ctx.group, ctx.options = group, (softcap, z_loss)
        share = (
            shares(q.counted, q.denominator) if q.denominator is not None and with_grads else None
        )
        needed = ctx.needs_input_grad[:3] if share is not None else [False] * 3
        losses, ctx.grads = losses_and_gradients(tensors, q, group, share, needed, *ctx.options)
        return reduce_counted(losses, q.counted, q.denominator)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        tensors, q = ctx.saved_tensors[:3], LocalDistribution(*ctx.saved_tensors[3:])
        grads, ctx.grads = ctx.grads, None
        per_row, needed = q.denominator is None, ctx.needs_input_grad[:3]
        if per_row or grads is None:  # None: an earlier backward has taken those of forward
            share = (
                upstream.masked_fill(~q.counted, 0) if per_row else shares(q.counted, q.denominator)
            )
            _, grads = losses_and_gradients(tensors, q, ctx.group, share, needed, *ctx.options)
        for grad in grads:
            if grad is not None and not per_row:
                grad.mul_(upstream)
        dtype = tensors[0].dtype
        return *(None if grad is None else grad.to(dtype) for grad in grads), *[None] * (4 + len(q))


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
    tensors = (input, linear_weight, linear_bias)
    value = FusedLoss.apply(*tensors, group, needs_gradient(*tensors), softcap, z_loss, *q)
    return value.to(result_dtype(input))
