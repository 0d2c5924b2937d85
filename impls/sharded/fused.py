"""linear.fused of a slice of the vocabulary: between its two passes the ranks add up their sums.

A chunk's logits give each row's maximum m_r and s_r = Σ exp(x - m_r) over this rank's classes, from
one pass that leaves the exponentials behind. With m = max_r m_r and s = Σ_r s_r exp(m_r - m), the
factor exp(m_r - m) / s makes them softmax(x), so no logit is read again. A chunk's part of dh is
summed over the ranks while the next chunk's products are made.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from impls.loss import autocast, check_call
from impls.shared import rows
from impls.shared.chunks import multiply, tokens_a_chunk
from impls.shared.reduction import accumulation_dtype, first_order, result_dtype
from impls.shared.shards import Shard, all_reduce, at_target, reduce, shard


class Row(NamedTuple):
    """What its gradient needs of each row: (N,) each, the same on every rank but for ``m_r``."""

    m: Tensor
    m_r: Tensor  # the maximum on this rank alone
    log_s: Tensor
    x_y: Tensor  # less m; 0 on the ranks that do not hold it


def row_losses(input, own, group, softcap, z_loss, exps):
    """Of this rank's (N, V_r) logits the (N,) losses; exp(x - m_r) is written to ``exps``."""
    x_y = rows.cap(at_target(input, own.y, own.here).to(own.at_y.dtype), softcap)
    if input.shape[1]:
        m_r, s, t = rows.compiled_sums(input, own.everywhere, softcap, exps)
        m_r, s = m_r.squeeze(1), s.squeeze(1)
    else:
        m_r, s, t = torch.full_like(x_y, torch.finfo(x_y.dtype).min), torch.zeros_like(x_y), None
    m = all_reduce(m_r.clone(), group, dist.ReduceOp.MAX)
    fall = m_r - m
    t = torch.zeros_like(s) if t is None else t.squeeze(1) + fall * own.everywhere.sum()
    x_y = (x_y - m).where(own.here, 0)
    s, everywhere_x_y, t = all_reduce(torch.stack([s * fall.exp(), x_y, t]), group)
    row = Row(m, m_r, s.log(), x_y)
    losses = -own.at_y * (everywhere_x_y - row.log_s) - (t - own.spread * row.log_s)
    if z_loss:
        losses = losses + z_loss * (m + row.log_s).square()
    return losses, row


def gradient(input, own, row, upstream, softcap, z_loss, exps):
    """That of this rank's logits, given that of the losses, over ``exps`` or the logits."""
    if input.shape[1] == 0:
        return input
    total = (own.total + 2 * z_loss * (row.m + row.log_s)) * upstream
    q_y = own.at_y if own.everywhere is None else own.at_y + own.everywhere[own.y]
    at_y = (row.x_y - row.log_s).exp() * total - q_y * upstream
    if softcap is not None:
        at_y *= 1 - ((row.x_y + row.m) / softcap).square()
    others = (input, upstream[:, None], own.everywhere, softcap)
    if exps is None:
        m, log_s = row.m[:, None], row.log_s[:, None]
        grad = rows.compiled_from_logits(input, m, log_s, total[:, None], *others)
    else:
        factor = total * (row.m_r - row.m - row.log_s).exp()
        grad = rows.compiled_from_exps(exps, factor[:, None], *others)
    target = torch.arange(len(grad), device=grad.device), own.y
    grad[target] = at_y.to(grad.dtype).where(own.here, grad[target])
    return grad


def over_chunks(tensors, own, group, upstream, needs_grad, softcap, z_loss):
    """(N,) losses and, given ``upstream`` (N,), the gradients of the tensors that need one."""
    input, linear_weight, linear_bias = tensors
    n = len(input)
    chunks = -(-n // tokens_a_chunk(input))
    chunk = -(-n // max(chunks, 1))  # all of a size
    buffer = input.new_empty(chunk, len(linear_weight))
    losses = own.at_y.new_empty(n)
    for_input, for_weight, for_bias = (upstream is not None and need for need in needs_grad[:3])
    make = torch.empty_like if n else torch.zeros_like
    grad_input = make(input) if for_input else None
    grad_weight = make(linear_weight) if for_weight else None
    grad_bias = losses.new_zeros(len(linear_weight)) if for_bias else None
    dh = None
    for start in range(0, n, max(chunk, 1)):
        part = slice(start, start + chunk)
        h = input[part]
        mine = own._replace(y=own.y[part], here=own.here[part], at_y=own.at_y[part])
        x = torch.mm(h, linear_weight.T, out=buffer[: len(h)])
        if linear_bias is not None:
            x += linear_bias
        # Over the logits, unless a softcap needs them. In half precision inductor does that badly.
        exps = x if softcap is None and x.itemsize > 2 else None
        losses[part], row = row_losses(x, mine, group, softcap, z_loss, exps)
        if upstream is None:
            continue
        # Not before: NCCL does one after the other, and the row's sums would wait for it.
        under_way = start_sum(dh, group)
        g = gradient(x, mine, row, upstream[part], softcap, z_loss, exps)
        dh = grad_input[part] if for_input else None
        multiply(g, h, linear_weight, dh, grad_weight, beta=min(start, 1))
        if for_bias:
            grad_bias += g.sum(0)
        finish(under_way)
    finish(start_sum(dh, group))
    return losses, (grad_input, grad_weight, grad_bias)


def start_sum(dh, group):
    """Begin to sum the ranks' ``dh``, if there is one; ``finish`` puts the sum in its place."""
    if dh is None:
        return None
    whole = dh.to(accumulation_dtype(dh.dtype)).contiguous()  # NCCL takes no other
    return dh, whole, dist.all_reduce(whole, group=group, async_op=True)


def finish(under_way):
    if under_way is not None:
        dh, whole, work = under_way
        work.wait()
        dh.copy_(whole)


class Loss(torch.autograd.Function):
    """Hidden states, this rank's weight and bias, and its share of q, to the reduced losses."""

    @staticmethod
    def forward(ctx, input, weight, bias, group, reduction, with_grads, softcap, z_loss, *fields):
        tensors, own = (input, weight, bias), Shard(*fields)
        ctx.save_for_backward(*tensors, *own)
        ctx.group, ctx.reduction, ctx.options = group, reduction, (softcap, z_loss)
        share = own.counted / own.norm if reduction != "none" and with_grads else None
        losses, ctx.grads = over_chunks(
            tensors, own, group, share, ctx.needs_input_grad, *ctx.options
        )
        return reduce(losses, own.counted, own.norm, reduction)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        tensors, own = ctx.saved_tensors[:3], Shard(*ctx.saved_tensors[3:])
        grads, ctx.grads = ctx.grads, None
        each = ctx.reduction == "none"
        if each or grads is None:  # None is left to a second backward
            share = upstream * own.counted if each else own.counted / own.norm
            _, grads = over_chunks(
                tensors, own, ctx.group, share, ctx.needs_input_grad, *ctx.options
            )
        factor = 1 if each else upstream
        grads = [
            None if grad is None else grad.mul_(factor).to(tensor.dtype)
            for grad, tensor in zip(grads, tensors, strict=True)
        ]
        return *grads, *[None] * (5 + len(Shard._fields))


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
    tensors = (input, linear_weight, linear_bias)
    with_grads = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    value = Loss.apply(*tensors, group, reduction, with_grads, softcap, z_loss, *own)
    return value.to(result_dtype(input))
