"""The fused losses' work on rows of logits x: one pass for the losses, one for the gradient.

Each pass is compiled to one loop over the rows, in which a row stays in cache. An exponential costs
more than to read or write a number, so the exponentials are kept where there is memory for them.

Two options that PyTorch lacks: a softcap c makes the logits c tanh(x/c), whose derivative is
1 - tanh²(x/c). The z-loss adds z lse² to a row's loss, where lse = log Σ_j exp(x_j), and
2 z lse softmax(x) to its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from impls.shared.compile import compile_whole
from impls.shared.reduction import (
    TargetDistribution,
    accumulation_dtype,
    put_at_target,
    row_losses,
)


class RowStatistics(NamedTuple):
    """Per-row statistics that backward needs, each (N, 1).

    log Σ_j exp(x_j) is m + log_s. It is kept as two numbers, since their rounded sum would lose
    digits of the smaller one.
    """

    m: Tensor  # max_j x_j
    log_s: Tensor  # log Σ_j exp(x_j - m)
    x_y: Tensor  # the target's logit

    @property
    def lse(self) -> Tensor:
        return self.m + self.log_s

    @property
    def log_p_y(self) -> Tensor:
        return self.x_y - self.m - self.log_s


def cap(x: Tensor, softcap: float | None) -> Tensor:
    """c tanh(x/c), or x itself without a softcap c."""
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def sums(
    input: Tensor, smoothing: Tensor | None, softcap: float | None, exps_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """m = max_j x_j, s = Σ_j exp(x_j - m) and t = Σ_j b_j (x_j - m) of each row x, each (N, 1).

    b is the ``smoothing``; without it t is None. ``exps_out`` receives exp(x - m). It may be the
    input.
    """
    x = cap(input.to(accumulation_dtype(input.dtype)), softcap)
    m = x.amax(1, keepdim=True)
    # The clamp avoids -inf - -inf = nan: a rank's whole part of a row may be -inf. The m that is
    # returned is not clamped, and no log of s is taken here. On a CPU each would be a loop of its
    # own, and the rows would leave the cache.
    x = x - m.clamp(min=torch.finfo(x.dtype).min)
    exps = x.exp()
    s = exps.sum(1, keepdim=True)
    t = None if smoothing is None else (x * smoothing).sum(1, keepdim=True)
    if exps_out is not None:
        exps_out.copy_(exps)
    return m, s, t


def gradient_from_softmax(
    p: Tensor, input: Tensor, upstream: Tensor, smoothing: Tensor | None, softcap: float | None
) -> Tensor:
    """The logits' gradient in all columns but the target's; p is softmax(x) times its factor."""
    if smoothing is not None:
        p = p - upstream * smoothing
    if softcap is not None:
        p = p * (1 - (cap(input.to(p.dtype), softcap) / softcap).square())
    return p


def gradient_from_exps(
    exps: Tensor,
    factor: Tensor,
    input: Tensor,
    upstream: Tensor,
    smoothing: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Write the gradient over exp(x - m), which is multiplied by ``factor``."""
    p = exps.to(factor.dtype) * factor
    return exps.copy_(gradient_from_softmax(p, input, upstream, smoothing, softcap))


def gradient_from_logits(
    input: Tensor,
    m: Tensor,
    log_s: Tensor,
    factor: Tensor,
    upstream: Tensor,
    smoothing: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Write the gradient over the logits; softmax(x) is multiplied by ``factor``."""
    x = cap(input.to(m.dtype), softcap)
    p = (x - m - log_s).exp() * factor
    return input.copy_(gradient_from_softmax(p, input, upstream, smoothing, softcap))


compiled_sums = compile_whole(sums)
compiled_gradient_from_exps = compile_whole(gradient_from_exps)
compiled_gradient_from_logits = compile_whole(gradient_from_logits)


def losses(
    input: Tensor,
    q: TargetDistribution,
    softcap: float | None,
    z_loss: float,
    exps_out: Tensor | None = None,
) -> tuple[Tensor, RowStatistics]:
    """The losses (N,) of logits (N, V), and what ``gradient`` needs.

    ``exps_out`` (N, V) receives exp(x - m). It may be the input.
    """
    x_y = input.gather(1, q.y[:, None])
    m, s, t = compiled_sums(input, q.smoothing, softcap, exps_out)
    row = RowStatistics(m, s.log(), cap(x_y.to(m.dtype), softcap))
    losses = row_losses(q, row.log_p_y, row.log_s, t)
    if z_loss:  # not in place, as in row_losses
        losses = losses + z_loss * row.lse.squeeze(1).square()
    return losses, row


def gradient(
    input: Tensor,
    q: TargetDistribution,
    row: RowStatistics,
    upstream: Tensor,
    softcap: float | None,
    z_loss: float,
    exps: Tensor | None = None,
) -> Tensor:
    """The gradient of logits (N, V), given the ``upstream`` gradient (N,) of their losses.

    It is written over ``exps``, which holds exp(x - m), or else over the logits. With ``exps`` the
    logits are read only for a softcap.
    """
    upstream = upstream[:, None]
    factor = (q.mass[:, None] + 2 * z_loss * row.lse) * upstream  # of softmax(x)
    # The target's entry is computed apart: p_y - 1 would be lost in a p_y rounded to bfloat16.
    target_grad = row.log_p_y.exp() * factor - q.at_target[:, None] * upstream
    if softcap is not None:
        target_grad *= 1 - (row.x_y / softcap).square()
    if exps is None:
        grad = compiled_gradient_from_logits(
            input, row.m, row.log_s, factor, upstream, q.smoothing, softcap
        )
    else:
        grad = compiled_gradient_from_exps(
            exps, factor * (-row.log_s).exp(), input, upstream, q.smoothing, softcap
        )
    put_at_target(grad, q.y, target_grad)
    return grad
