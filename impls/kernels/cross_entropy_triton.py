"""Triton: the losses of rows of logits x and their gradient, in one kernel.

A program takes one row after the other. A first pass finds the row's maximum m and
s = Σ exp(x - m). A second pass goes backwards and writes the gradient. Few rows are worked on at
once, so the second pass reads most logits from a cache, not from memory. A step moves little more
than a copy does: N V logits in, N V out.

A GPU has one instruction for a power of 2, so exponentials are 2^((x - m) log₂e).
docs/experiments/0024-triton-kernel.md says what this design was chosen from.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from impls.loss import INTERPRETED

NUMBERS = 32  # logits that a thread works on at once
# Bytes of a long row. With two long rows on each multiprocessor, the rows do not fit the L2 cache.
LONG = 384 * 2**10

LOG2E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(-1e38)  # in place of -inf, as -inf - -inf is nan


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
def cap(x, softcap: tl.constexpr):
    """c tanh(x / c); x itself where there is no softcap c."""
    return x if softcap is None else softcap * tanh(x / softcap)


@triton.jit
def capped(x, inside, softcap: tl.constexpr):
    """A tile of logits in float32, capped. Outside the row it is -inf."""
    x = x.to(tl.float32)
    return x if softcap is None else tl.where(inside, cap(x, softcap), float("-inf"))


@triton.jit
def q_of(everywhere, column, inside, uniform: tl.constexpr):
    """q at the columns; one number where q is the same for all classes."""
    return tl.load(everywhere) if uniform else tl.load(everywhere + column, inside, other=0.0)


@triton.jit
def rows_kernel(
    logits,  # (n, vocab)
    grad,  # (n, vocab), which may be the logits
    losses,  # (n,)
    y,  # (n,)
    at_y,  # (n,)
    everywhere,  # (vocab,), or (1,) where it is the same for all classes
    spread,  # () Σ everywhere
    upstream,  # (n,)
    n,
    vocab,
    logits_stride,
    grad_stride,
    softcap: tl.constexpr,
    z_loss: tl.constexpr,
    with_grad: tl.constexpr,
    smoothed: tl.constexpr,
    uniform: tl.constexpr,  # whether everywhere is one number
    deep: tl.constexpr,
    wide: tl.constexpr,
):
    tile = tl.arange(0, deep)[:, None] * wide + tl.arange(0, wide)[None, :]
    size: tl.constexpr = deep * wide
    tiles = tl.cdiv(vocab, size)
    sum_q = tl.load(spread) if smoothed else 0.0
    for row in range(tl.program_id(0), n, tl.num_programs(0)):
        of_row = logits + tl.cast(row, tl.int64) * logits_stride
        to_row = grad + tl.cast(row, tl.int64) * grad_stride
        given = tl.load(upstream + row) if with_grad else 1.0
        if with_grad and given == 0:  # an ignored row, whose logits may be nan
            for i in range(tiles):
                column = i * size + tile
                tl.store(to_row + column, tl.zeros([deep, wide], tl.float32), column < vocab)
            tl.store(losses + row, 0.0)
        else:
            target = tl.load(y + row).to(tl.int32)
            share = tl.load(at_y + row)
            # A target out of range makes its row nan: nothing outside the row is read or written.
            known = (target >= 0) & (target < vocab)
            x_y = cap(tl.load(of_row + target, known, other=float("nan")).to(tl.float32), softcap)
            near = tl.maximum(x_y, LEAST)
            m = tl.full([wide], LEAST, tl.float32)
            s = tl.zeros([wide], tl.float32)
            q_x = tl.zeros([wide], tl.float32)  # Σ q (x - near)
            for i in range(tiles):
                column = i * size + tile
                inside = column < vocab
                x = tl.load(
                    of_row + column, inside, other=float("-inf"), eviction_policy="evict_last"
                )
                x = capped(x, inside, softcap)
                if smoothed:
                    q = q_of(everywhere, column, inside, uniform)
                    q_x += tl.sum(tl.where(inside, q * (x - near), 0.0), 0)
                top = tl.maximum(m, tl.max(x, 0))
                exps = tl.exp2((x - top[None, :]) * LOG2E)
                s = s * tl.exp2((m - top) * LOG2E) + tl.sum(exps, 0)
                m = top
            top = tl.max(m)
            s = tl.sum(s * tl.exp2((m - top) * LOG2E))
            log_p_y = x_y - top - tl.log(s)
            lse = top + tl.log(s)
            loss = -share * log_p_y + z_loss * lse * lse
            if smoothed:
                loss -= tl.sum(q_x) + sum_q * (near - x_y + log_p_y)
            tl.store(losses + row, loss)
            if with_grad:
                total = share + sum_q + 2 * z_loss * lse
                factor = tl.where(known, total * given / s, float("nan"))
                for i in range(tiles):
                    column = (tiles - 1 - i) * size + tile
                    inside = column < vocab
                    x = tl.load(
                        of_row + column, inside, other=float("-inf"), eviction_policy="evict_first"
                    )
                    x = capped(x, inside, softcap)
                    g = tl.exp2((x - top) * LOG2E) * factor
                    if smoothed:
                        g -= q_of(everywhere, column, inside, uniform) * given
                    if softcap is not None:
                        g *= 1 - (x / softcap) * (x / softcap)
                    tl.store(to_row + column, g, inside, cache_modifier=".cs")
                # The target's entry anew, in float32: p - 1, from a rounded p, would be lost.
                if smoothed:
                    share += q_of(everywhere, target, known, uniform)
                g_y = tl.exp2((x_y - top) * LOG2E) * factor - share * given
                if softcap is not None:
                    g_y *= 1 - (x_y / softcap) * (x_y / softcap)
                tl.debug_barrier()  # another thread has written that entry
                tl.store(to_row + target, g_y, known)


@triton.jit
def scale_kernel(grad, factor, count, size: tl.constexpr):
    """``grad`` times the number ``factor``; where that is 1, nothing is read or written."""
    by = tl.load(factor)
    if by != 1:
        for block in range(tl.program_id(0), tl.cdiv(count, size), tl.num_programs(0)):
            index = tl.cast(block, tl.int64) * size + tl.arange(0, size)
            inside = index < count
            g = tl.load(grad + index, inside).to(by.dtype)
            tl.store(grad + index, g * by, inside)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def shape(vocab: int, itemsize: int, plain: bool) -> tuple[int, int, int, int]:
    """Of a tile (deep, wide); how many warps a program has, and programs a multiprocessor.

    A thread reads 16 bytes at once. A softcap or smoothing needs more registers: not ``plain``.
    """
    numbers = NUMBERS if plain else NUMBERS // 2
    long = vocab * itemsize > LONG
    warps = min(32 if long and plain else 16, triton.next_power_of_2(triton.cdiv(vocab, 1024)))
    each = 16 // itemsize
    return numbers // each, 32 * warps * each, warps, (32 if plain else 16) // warps


def registers(plain: bool) -> int:
    """How many a thread may have, so that as many programs run at once as ``shape`` says."""
    return 64 if plain else 128


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
    plain = everywhere is None and softcap is None
    deep, wide, warps, programs = shape(vocab, logits.itemsize, plain)
    options = {}
    if not INTERPRETED:
        programs *= multiprocessors(logits.device)
        options = {"num_warps": warps, "maxnreg": registers(plain)}
    if n == 0:
        return losses
    with torch.cuda.device_of(logits):
        rows_kernel[(n if INTERPRETED else min(n, programs),)](
            logits,
            logits if grad is None else grad,
            losses,
            y,
            at_y,
            at_y if everywhere is None else everywhere,
            at_y if everywhere is None else everywhere.sum(),
            at_y if upstream is None else upstream,
            n,
            vocab,
            logits.stride(0),
            0 if grad is None else grad.stride(0),
            softcap=softcap,
            z_loss=z_loss,
            with_grad=upstream is not None,
            smoothed=everywhere is not None,
            uniform=everywhere is not None and everywhere.stride(0) == 0,
            deep=deep,
            wide=wide,
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
    (vocab,) is on every class. The columns of the logits must be contiguous. A row whose upstream
    gradient is 0 is not read: its loss is 0, and so is its gradient. One whose target is out of
    range has the loss nan, and a gradient of nan.
    """
    grad = logits.new_empty(logits.shape if upstream is not None else 0)
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
    """Multiply ``grad`` by the number ``factor``. Where that is 1 nothing is read or written.

    The memory of ``grad`` must have no gaps. The device reads the number: the host does not wait.
    """
    if grad.numel() == 0:
        return
    programs = 8 if INTERPRETED else 8 * multiprocessors(grad.device)
    with torch.cuda.device_of(grad):
        scale_kernel[(programs,)](grad, factor, grad.numel(), size=4096)


@scale_.register_fake
def _(grad, factor):
    return None
