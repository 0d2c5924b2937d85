"""What the fused losses share: rows of logits x, read once for their losses, once for the gradient.

Each of the two is compiled to one loop over the rows, in which a row stays in cache. With softcap c
the logits are c tanh(x/c), and the gradient has the factor 1 - tanh²(x/c); the z-loss z lse² adds
2 z lse softmax(x) to it, lse being log Σ exp(x).
"""

import torch
from torch import Tensor

from impls.reduction import Q, accumulation_dtype


def cap(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def sums(
    input: Tensor, everywhere: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each row of x: its maximum m, Σ exp(x - m), and Σ q (x - m) for q everywhere."""
    x = cap(input.to(accumulation_dtype(input.dtype)), softcap)
    m = x.amax(1, keepdim=True)
    # Not its log: on a CPU that would be a loop of its own, and the rows would leave the cache.
    s = (x - m).exp().sum(1, keepdim=True)
    return m, s, None if everywhere is None else ((x - m) * everywhere).sum(1, keepdim=True)


def softmax_minus_q(
    input: Tensor,
    m: Tensor,
    log_s: Tensor,
    total: Tensor,
    upstream: Tensor,
    everywhere: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """The gradient of x, apart from what q has at the target alone."""
    x = cap(input.to(accumulation_dtype(input.dtype)), softcap)
    grad = (x - m - log_s).exp() * total
    if everywhere is not None:
        grad = grad - upstream * everywhere
    if softcap is not None:
        grad = grad * (1 - (x / softcap).square())
    return grad.to(input.dtype)


def softmax_minus_q_in_place(input: Tensor, *others: Tensor | float | None) -> Tensor:
    return input.copy_(softmax_minus_q(input, *others))  # type: ignore[arg-type]


def largest(x: Tensor) -> Tensor:
    """Of each column the largest absolute value."""
    return x.abs().amax(0)


# With fullgraph, what cannot be compiled raises, rather than run uncompiled.
compiled_sums, compiled_gradient, compiled_gradient_in_place, compiled_largest = (
    torch.compile(function, fullgraph=True, recompile_limit=64)  # type: ignore[call-overload]
    for function in (sums, softmax_minus_q, softmax_minus_q_in_place, largest)
)


def losses(
    input: Tensor, q: Q, softcap: float | None, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of (N, V) logits: the (N,) losses and, as (N, 1), the rows' m and log Σ exp(x - m)."""
    m, s, t = compiled_sums(input, q.everywhere, softcap)
    log_s = s.log()
    x_y = cap(input.gather(1, q.y[:, None]).to(m.dtype), softcap)
    losses = -q.at_y * (x_y - m - log_s).squeeze(1)
    if q.everywhere is not None:
        losses -= (t - q.everywhere.sum() * log_s).squeeze(1)
    if z_loss:
        losses += z_loss * (m + log_s).squeeze(1).square()
    return losses, m, log_s


def gradient(
    input: Tensor,
    q: Q,
    m: Tensor,
    log_s: Tensor,
    upstream: Tensor,
    softcap: float | None,
    z_loss: float,
    in_place: bool = False,
) -> Tensor:
    """The gradient of (N, V) logits, given that of the (N,) losses; ``in_place``, over them."""
    y, upstream = q.y[:, None], upstream[:, None]
    total = (q.total[:, None] + 2 * z_loss * (m + log_s)) * upstream
    x_y = cap(input.gather(1, y).to(m.dtype), softcap)
    # The target's entry apart: p - 1, from a p already rounded to bfloat16, would be lost.
    q_y = q.at_y if q.everywhere is None else q.at_y + q.everywhere[q.y]
    at_y = (x_y - m - log_s).exp() * total - q_y[:, None] * upstream
    if softcap is not None:
        at_y *= 1 - (x_y / softcap).square()
    function = compiled_gradient_in_place if in_place else compiled_gradient
    grad = function(input, m, log_s, total, upstream, q.everywhere, softcap)
    # Not scatter_, which on a CPU copies a bfloat16 tensor twice (torch 2.13).
    grad[torch.arange(len(grad), device=grad.device), q.y] = at_y.squeeze(1).to(grad.dtype)
    return grad
