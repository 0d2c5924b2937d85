"""Triton: the losses of rows of logits and their gradient; each logit is read from memory once.

A program holds one slice of a row in registers. The programs of a row exchange four numbers for
each slice k through memory: m_k = max x, s_k = Σ exp(x - m_k), and the slice's shares of x_y and
of Σ q x. From these each program knows the row's m and s = Σ_k s_k exp(m_k - m), and makes the
gradient of its slice from the exponentials that it still holds. So a step reads the logits once and
writes the gradient once: as many bytes as a copy.

The programs of a row wait for each other. A cooperative launch guarantees that all run at once.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from impls.loss import INTERPRETED

SLICE = 8192  # logits that a program holds
SLICE_WITH_OPTIONS = 4096  # the same with a softcap or smoothing, which take registers
WARPS = 8
PROGRAMS = 3  # that run on a multiprocessor at once
REGISTERS = 65536 // (32 * WARPS * PROGRAMS) // 8 * 8  # of a thread, so that they fit
AHEAD = False
NUMBERS = 5  # that a program tells the others of its row: m, s, x_y, Σ q x and Σ q


@triton.jit
def tanh(u):
    """Within 2 units in the last place. Near 0 by Cephes' polynomial, where 1 - … would cancel."""
    square = u * u
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = (p * square - 5.37397155531e-2) * square + 1.33314422036e-1
    near = u + u * square * (p * square - 3.33332819422e-1)
    far = 1 - 2 / (tl.exp(2 * tl.abs(u)) + 1)
    return tl.where(tl.abs(u) < 0.625, near, tl.where(u < 0, -far, far))


@triton.jit
def rows_kernel(
    logits,  # (n, vocab)
    grad,  # (n, vocab), which may be the logits
    losses,  # (n,)
    y,  # (n,)
    at_y,  # (n,)
    everywhere,  # (vocab,)
    spread,  # () Σ everywhere
    upstream,  # (n,) or (1,)
    shared,  # (n, parts, NUMBERS)
    arrived,  # (n,) how many programs have told their numbers; zeros
    n,
    vocab,
    logits_stride,
    grad_stride,
    upstream_stride,
    softcap: tl.constexpr,
    z_loss: tl.constexpr,
    with_grad: tl.constexpr,
    smoothed: tl.constexpr,
    parts: tl.constexpr,
    some_parts: tl.constexpr,  # the next power of two
    size: tl.constexpr,
    width: tl.constexpr,
    ahead: tl.constexpr,
):
    part = tl.program_id(0) % parts
    column = part * size + tl.arange(0, size)
    inside = column < vocab
    each = tl.arange(0, some_parts)
    sum_q = 0.0
    if smoothed:
        q = tl.load(everywhere + column, inside, other=0.0)
        sum_q = tl.load(spread)
        own_q = tl.sum(q)
    first, step = tl.program_id(0) // parts, tl.num_programs(0) // parts
    if ahead:
        place = logits + tl.cast(first, tl.int64) * logits_stride + column
        coming = tl.load(place, inside & (first < n), other=float("-inf"))
    for row in range(first, n, step):
        long = tl.cast(row, tl.int64)
        if ahead:
            x = coming
        else:
            x = tl.load(logits + long * logits_stride + column, inside, other=float("-inf"))
        target = tl.load(y + row)
        share = tl.load(at_y + row)
        given = 1.0
        if with_grad:
            given = tl.load(upstream + row * upstream_stride)
        x = x.to(tl.float32)
        if softcap is not None:
            x = tl.where(inside, softcap * tanh(x / softcap), float("-inf"))
        # Not -inf, of which a slice may consist: -inf - -inf is nan.
        own_m = tl.maximum(tl.max(x), -3.4e38)
        exps = tl.exp(x - own_m)
        m, s = own_m, tl.sum(exps)
        x_y = tl.sum(tl.where(column == target, x, 0.0))
        q_x = 0.0
        if smoothed:
            q_x = tl.sum(tl.where(inside, q * (x - own_m), 0.0))
        if ahead:
            place = logits + (long + step) * logits_stride + column
            coming = tl.load(place, inside & (row + step < n), other=float("-inf"))
        if parts > 1:
            mine = shared + (long * parts + part) * width
            tl.store(mine, m)
            tl.store(mine + 1, s)
            tl.store(mine + 2, x_y)
            if smoothed:
                tl.store(mine + 3, q_x)
                tl.store(mine + 4, own_q)
            tl.debug_barrier()
            tl.atomic_add(arrived + row, 1, sem="release")
            while tl.atomic_add(arrived + row, 0, sem="acquire") < parts:
                pass
            told = shared + (long * parts + each) * width
            here = each < parts
            # Not from L1, which may hold a line from before.
            all_m = tl.load(told, here, other=-3.4e38, cache_modifier=".cg")
            m = tl.max(all_m)
            all_s = tl.load(told + 1, here, other=0.0, cache_modifier=".cg")
            s = tl.sum(all_s * tl.exp(all_m - m))
            x_y = tl.sum(tl.load(told + 2, here, other=0.0, cache_modifier=".cg"))
            if smoothed:
                all_q_x = tl.load(told + 3, here, other=0.0, cache_modifier=".cg")
                all_q = tl.load(told + 4, here, other=0.0, cache_modifier=".cg")
                q_x = tl.sum(all_q_x + (all_m - m) * all_q)
        log_s = tl.log(s)
        if with_grad:
            total = share + sum_q + 2 * z_loss * (m + log_s)
            g = exps * (total * given * tl.exp(own_m - m) / s)
            if smoothed:
                g -= q * given
            # The target's entry in float32: p - 1, from a rounded p, would be lost.
            g = tl.where(column == target, g - share * given, g)
            if softcap is not None:
                g *= 1 - (x / softcap) * (x / softcap)
            g = tl.where(given == 0, 0.0, g)  # an ignored row, whose logits may be nan
            tl.store(grad + long * grad_stride + column, g, inside)
        if part == 0:
            loss = -share * (x_y - m - log_s)
            if smoothed:
                loss -= q_x - sum_q * log_s
            loss += z_loss * (m + log_s) * (m + log_s)
            tl.store(losses + row, loss)


@triton.jit
def scale_kernel(grad, factor, count, size: tl.constexpr):
    """``grad`` times the number ``factor``; where that is 1, nothing is read or written."""
    by = tl.load(factor)
    if by != 1:
        for block in range(tl.program_id(0), tl.cdiv(count, size), tl.num_programs(0)):
            index = tl.cast(block, tl.int64) * size + tl.arange(0, size)
            inside = index < count
            g = tl.load(grad + index, inside).to(tl.float32)
            tl.store(grad + index, g * by, inside)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    logits: Tensor,
    y: Tensor,
    at_y: Tensor,
    everywhere: Tensor | None,
    upstream: Tensor | None,
    grad: Tensor | None,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The (n,) losses; the gradient is written to ``grad``, if there is an ``upstream`` one."""
    n, vocab = logits.shape
    losses = at_y.new_empty(n)
    if n == 0:
        return losses
    size = SLICE if everywhere is None and softcap is None else SLICE_WITH_OPTIONS
    if INTERPRETED or vocab <= size:  # interpreted programs run one after the other: none may wait
        size = triton.next_power_of_2(vocab)
    parts = triton.cdiv(vocab, size)
    groups, options = n, {}
    shared = arrived = losses
    if not INTERPRETED:
        groups = min(n, PROGRAMS * multiprocessors(logits.device) // parts)
        options = {"num_warps": WARPS, "maxnreg": REGISTERS}
    if groups == 0:
        raise ValueError(f"{vocab} classes are more than the programs that run at once can hold")
    if parts > 1:
        shared = losses.new_empty(n, parts, NUMBERS)
        arrived = torch.zeros(n, dtype=torch.int32, device=logits.device)
        options["launch_cooperative_grid"] = True
    with torch.cuda.device_of(logits):
        rows_kernel[(groups * parts,)](
            logits,
            logits if grad is None else grad,
            losses,
            y,
            at_y,
            at_y if everywhere is None else everywhere,
            at_y if everywhere is None else everywhere.sum(),
            at_y if upstream is None else upstream,
            shared,
            arrived,
            n,
            vocab,
            logits.stride(0),
            0 if grad is None else grad.stride(0),
            0 if upstream is None else upstream.stride(0),
            softcap=softcap,
            z_loss=z_loss,
            with_grad=upstream is not None,
            smoothed=everywhere is not None,
            parts=parts,
            some_parts=triton.next_power_of_2(parts),
            size=size,
            width=NUMBERS,
            ahead=AHEAD,
            **options,
        )
    return losses


@torch.library.custom_op("cross_entropy_bench::rows", mutates_args=())
def rows(
    logits: Tensor,
    y: Tensor,
    at_y: Tensor,
    everywhere: Tensor | None,
    upstream: Tensor | None,
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """The (n,) losses of (n, vocab) logits and, given ``upstream`` (n,), the logits' gradient.

    With no ``upstream`` the second is empty. q at the target is ``at_y`` (n,), and ``everywhere``
    (vocab,) is on every class. The columns of the logits must be contiguous.
    """
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if upstream is None:
        grad = logits.new_empty(0)
    losses = launch(logits, y, at_y, everywhere, upstream, grad, softcap, z_loss)
    return losses, grad


@rows.register_fake
def _(logits, y, at_y, everywhere, upstream, softcap, z_loss):
    shape = logits.shape if upstream is not None else (0,)
    return at_y.new_empty(len(logits)), logits.new_empty(shape)


@torch.library.custom_op("cross_entropy_bench::rows_", mutates_args=("logits",))
def rows_(
    logits: Tensor,
    y: Tensor,
    at_y: Tensor,
    everywhere: Tensor | None,
    upstream: Tensor,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The (n,) losses as of ``rows``; the gradient takes the place of the logits."""
    return launch(logits, y, at_y, everywhere, upstream, logits, softcap, z_loss)


@rows_.register_fake
def _(logits, y, at_y, everywhere, upstream, softcap, z_loss):
    return at_y.new_empty(len(logits))


@torch.library.custom_op("cross_entropy_bench::scale_", mutates_args=("grad",))
def scale_(grad: Tensor, factor: Tensor) -> None:
    """Multiply ``grad``, contiguous, by the number ``factor``. If that is 1 it is left as it is.

    The device reads the number: the host does not wait.
    """
    programs = 8 if INTERPRETED else 8 * multiprocessors(grad.device)
    with torch.cuda.device_of(grad):
        if grad.numel():
            scale_kernel[(programs,)](grad, factor, grad.numel(), size=4096)


@scale_.register_fake
def _(grad, factor):
    return None
