"""What the fused losses share: rows of logits x, read once for their losses, once for the gradient.

Each of the two is compiled to one loop over the rows, in which a row stays in cache. With softcap c
the logits are c tanh(x/c), and the gradient has the factor 1 - tanh²(x/c); the z-loss z lse² adds
2 z lse softmax(x) to it, lse being log Σ exp(x). An exponential costs more than to read or write a
number: where there is room for them, they are kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from impls.shared.compile import compile_whole
from impls.shared.reduction import Q, accumulation_dtype


def cap(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else softcap * torch.tanh(x / softcap)


class Row(NamedTuple):
    """What its gradient needs of each row beside x: (N, 1) each.

    log Σ exp(x) is m + log_s. It is kept in two numbers, as rounding them into one would lose
    digits of what is small.
    """

    m: Tensor
    log_s: Tensor
    x_y: Tensor


def sums(
    input: Tensor, everywhere: Tensor | None, softcap: float | None, exps_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each row of x: its maximum m, Σ exp(x - m), Σ q (x - m) for q everywhere.

    exp(x - m) is written to ``exps_out``, which may be the input.
    """
    x = cap(input.to(accumulation_dtype(input.dtype)), softcap)
    m = x.amax(1, keepdim=True)
    # Clamped, as -inf - -inf is nan, and all that a rank holds of a row may be -inf. But what is
    # returned is not, nor is s its log: on a CPU each would be a loop of its own, and the rows
    # would leave the cache.
    x = x - m.clamp(min=torch.finfo(x.dtype).min)
    exps = x.exp()
    s = exps.sum(1, keepdim=True)
    t = None if everywhere is None else (x * everywhere).sum(1, keepdim=True)
    if exps_out is not None:
        exps_out.copy_(exps)
    return m, s, t


def softmax_minus_q(
    p: Tensor,
    input: Tensor,
    upstream: Tensor,
    everywhere: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """The gradient of x, apart from what q has at the target alone; p is softmax(x) in full."""
    if everywhere is not None:
        p = p - upstream * everywhere
    if softcap is not None:
        p = p * (1 - (cap(input.to(p.dtype), softcap) / softcap).square())
    return p


def from_exps(exps: Tensor, factor: Tensor, *others: Tensor | float | None) -> Tensor:
    """exp(x - m) becomes the gradient."""
    p = exps.to(factor.dtype) * factor
    return exps.copy_(softmax_minus_q(p, *others))  # type: ignore[arg-type]


def from_logits(
    input: Tensor, m: Tensor, log_s: Tensor, total: Tensor, *others: Tensor | float | None
) -> Tensor:
    """The logits become their gradient."""
    x = cap(input.to(m.dtype), others[-1])  # type: ignore[arg-type]
    p = (x - m - log_s).exp() * total
    return input.copy_(softmax_minus_q(p, *others))  # type: ignore[arg-type]


def largest(x: Tensor) -> Tensor:
    """Of each column the largest absolute value."""
    return x.abs().amax(0)


compiled_sums = compile_whole(sums)
compiled_from_exps = compile_whole(from_exps)
compiled_from_logits = compile_whole(from_logits)
compiled_largest = compile_whole(largest)


def losses(
    input: Tensor,
    q: Q,
    softcap: float | None,
    z_loss: float,
    exps_out: Tensor | None = None,
) -> tuple[Tensor, Row]:
    """Of (N, V) logits the (N,) losses; exp(x - m) is written to ``exps_out``, if there is one."""
    x_y = input.gather(1, q.y[:, None])
    m, s, t = compiled_sums(input, q.everywhere, softcap, exps_out)
    row = Row(m, s.log(), cap(x_y.to(m.dtype), softcap))
    losses = -q.at_y * (row.x_y - m - row.log_s).squeeze(1)
    # Not in place: Dynamo of torch 2.11 then loses the gradient of a Function that calls this.
    if q.everywhere is not None:
        losses = losses - (t - q.everywhere.sum() * row.log_s).squeeze(1)
    if z_loss:
        losses = losses + z_loss * (m + row.log_s).squeeze(1).square()
    return losses, row


def gradient(
    input: Tensor,
    q: Q,
    row: Row,
    upstream: Tensor,
    softcap: float | None,
    z_loss: float,
    exps: Tensor | None = None,
) -> Tensor:
    """The gradient of (N, V) logits, given that of the (N,) losses, over ``exps`` or the logits.

    With ``exps`` the input is read for a softcap alone.
    """
    upstream = upstream[:, None]
    total = (q.total[:, None] + 2 * z_loss * (row.m + row.log_s)) * upstream
    # The target's entry apart: p - 1, from a p already rounded to bfloat16, would be lost.
    q_y = q.at_y if q.everywhere is None else q.at_y + q.everywhere[q.y]
    at_y = (row.x_y - row.m - row.log_s).exp() * total - q_y[:, None] * upstream
    if softcap is not None:
        at_y *= 1 - (row.x_y / softcap).square()
    others = (input, upstream, q.everywhere, softcap)
    if exps is None:
        grad = compiled_from_logits(input, row.m, row.log_s, total, *others)
    else:
        grad = compiled_from_exps(exps, total * (-row.log_s).exp(), *others)
    # Not scatter_, which on a CPU copies a bfloat16 tensor twice (torch 2.13).
    grad[torch.arange(len(grad), device=grad.device), q.y] = at_y.squeeze(1).to(grad.dtype)
    return grad
