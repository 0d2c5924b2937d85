"""A Triton kernel: the losses of rows of logits x, and the logits' gradient.

A program takes one row after the other. A first pass over the row finds its maximum m and
s = Σ_j exp(x_j - m). A second pass goes backwards and writes the gradient. a, b and q are those of
``impls.shared.reduction``; softcap and z-loss are those of ``impls.shared.rows``. Few rows are
worked on at once, so the second pass reads most logits from a cache, not from memory. A step moves
little more than a copy does: N V logits in, N V out.

A GPU has one instruction for a power of 2, so exp(x - m) is 2^((x - m) log₂e).
docs/experiments/0024-triton-kernel.md has the designs that were compared.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from impls.kernels.operators import register
from impls.loss import INTERPRETED

LOGITS_PER_THREAD = 32  # at once
LONG_ROW = 384 * 2**10  # bytes; two longer rows per multiprocessor do not fit the L2 cache

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # in place of -inf: -inf - -inf is nan


@triton.jit
def tanh(u):
    """tanh(u) within 2 units in the last place. Near 0, where 1 - … cancels, Cephes' polynomial."""
    square = u * u
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = (p * square - 5.37397155531e-2) * square + 1.33314422036e-1
    near = u + u * square * (p * square - 3.33332819422e-1)
    far = 1 - 2 / (tl.exp(2 * tl.abs(u)) + 1)
    return tl.where(tl.abs(u) < 0.625, near, tl.where(u < 0, -far, far))


@triton.jit
def cap(x, softcap: tl.constexpr):
    """c tanh(x/c), or x itself without a softcap c."""
    return x if softcap is None else softcap * tanh(x / softcap)


@triton.jit
def cap_tile(x, inside, softcap: tl.constexpr):
    """A tile of logits, capped, in float32; -inf outside the row."""
    x = x.to(tl.float32)
    return x if softcap is None else tl.where(inside, cap(x, softcap), float("-inf"))


@triton.jit
def load_smoothing(smoothing, column, inside, uniform: tl.constexpr):
    """b at the columns; if it is ``uniform``, one number."""
    return tl.load(smoothing) if uniform else tl.load(smoothing + column, inside, other=0.0)


@triton.jit
def rows_kernel(
    logits,  # (n, vocab)
    grad,  # (n, vocab), which may be the logits
    losses,  # (n,)
    y,  # (n,)
    target_weight,  # (n,) a
    smoothing,  # (vocab,) b, or (1,) if it is uniform
    smoothing_sum,  # () Σ_j b_j
    upstream,  # (n,)
    n,
    vocab,
    logits_stride,
    grad_stride,
    softcap: tl.constexpr,
    z_loss: tl.constexpr,
    with_grad: tl.constexpr,
    smoothed: tl.constexpr,
    uniform: tl.constexpr,  # whether b is the same number for all classes
    depth: tl.constexpr,  # of a tile
    width: tl.constexpr,
):
    tile = tl.arange(0, depth)[:, None] * width + tl.arange(0, width)[None, :]
    size: tl.constexpr = depth * width
    tiles = tl.cdiv(vocab, size)
    sum_b = tl.load(smoothing_sum) if smoothed else 0.0
    for row in range(tl.program_id(0), n, tl.num_programs(0)):
        x_row = logits + tl.cast(row, tl.int64) * logits_stride
        g_row = grad + tl.cast(row, tl.int64) * grad_stride
        row_upstream = tl.load(upstream + row) if with_grad else 1.0
        if with_grad and row_upstream == 0:  # an ignored row, whose logits may be nan
            for i in range(tiles):
                column = i * size + tile
                tl.store(g_row + column, tl.zeros([depth, width], tl.float32), column < vocab)
            tl.store(losses + row, 0.0)
        else:
            target = tl.load(y + row).to(tl.int32)
            a = tl.load(target_weight + row)
            # A target out of range makes its row nan: nothing outside the row is read or written.
            in_range = (target >= 0) & (target < vocab)
            x_y = tl.load(x_row + target, in_range, other=float("nan"))
            x_y = cap(x_y.to(tl.float32), softcap)
            shift = tl.maximum(x_y, LOWEST)
            m = tl.full([width], LOWEST, tl.float32)
            s = tl.zeros([width], tl.float32)
            t = tl.zeros([width], tl.float32)  # Σ_j b_j (x_j - shift)
            for i in range(tiles):
                column = i * size + tile
                inside = column < vocab
                x = tl.load(
                    x_row + column, inside, other=float("-inf"), eviction_policy="evict_last"
                )
                x = cap_tile(x, inside, softcap)
                if smoothed:
                    b = load_smoothing(smoothing, column, inside, uniform)
                    t += tl.sum(tl.where(inside, b * (x - shift), 0.0), 0)
                top = tl.maximum(m, tl.max(x, 0))
                exps = tl.exp2((x - top[None, :]) * LOG2E)
                s = s * tl.exp2((m - top) * LOG2E) + tl.sum(exps, 0)
                m = top
            top = tl.max(m)
            s = tl.sum(s * tl.exp2((m - top) * LOG2E))
            log_p_y = x_y - top - tl.log(s)
            lse = top + tl.log(s)
            loss = -a * log_p_y + z_loss * lse * lse
            if smoothed:
                loss -= tl.sum(t) + sum_b * (shift - x_y + log_p_y)
            tl.store(losses + row, loss)
            if with_grad:
                softmax_factor = (a + sum_b + 2 * z_loss * lse) * row_upstream
                factor = tl.where(in_range, softmax_factor / s, float("nan"))
                for i in range(tiles):
                    column = (tiles - 1 - i) * size + tile
                    inside = column < vocab
                    x = tl.load(
                        x_row + column, inside, other=float("-inf"), eviction_policy="evict_first"
                    )
                    x = cap_tile(x, inside, softcap)
                    g = tl.exp2((x - top) * LOG2E) * factor
                    if smoothed:
                        g -= load_smoothing(smoothing, column, inside, uniform) * row_upstream
                    if softcap is not None:
                        g *= 1 - (x / softcap) * (x / softcap)
                    tl.store(g_row + column, g, inside, cache_modifier=".cs")
                # The target's entry is computed apart: p_y - 1 would be lost in a rounded p_y.
                if smoothed:
                    a += load_smoothing(smoothing, target, in_range, uniform)
                g_y = tl.exp2((x_y - top) * LOG2E) * factor - a * row_upstream
                if softcap is not None:
                    g_y *= 1 - (x_y / softcap) * (x_y / softcap)
                tl.debug_barrier()  # another thread has written that entry
                tl.store(g_row + target, g_y, in_range)


@triton.jit
def scale_kernel(grad, factor, count, size: tl.constexpr):
    """Multiply ``grad`` by the number ``factor``. A factor of 1 reads and writes nothing."""
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


def launch_shape(vocab: int, itemsize: int, is_plain: bool) -> tuple[int, int, int, int]:
    """A tile's depth and width, a program's warps, and a multiprocessor's programs.

    A thread reads 16 bytes at once. A plain loss has no softcap and no smoothing, which would need
    more registers.
    """
    logits = LOGITS_PER_THREAD if is_plain else LOGITS_PER_THREAD // 2
    is_long = vocab * itemsize > LONG_ROW
    most_warps = 32 if is_long and is_plain else 16
    warps = min(most_warps, triton.next_power_of_2(triton.cdiv(vocab, 1024)))
    loaded = 16 // itemsize  # logits, at once
    return logits // loaded, 32 * warps * loaded, warps, (32 if is_plain else 16) // warps


def registers_per_thread(is_plain: bool) -> int:
    """The limit with which as many programs run at once as ``launch_shape`` says."""
    return 64 if is_plain else 128


def launch(
    logits: Tensor,
    y: Tensor,
    target_weight: Tensor,
    smoothing: Tensor | None,
    upstream: Tensor | None,
    grad: Tensor | None,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The losses (n,). With an ``upstream`` gradient, ``grad`` receives the logits' gradient."""
    n, vocab = logits.shape
    losses = target_weight.new_empty(n)
    is_plain = smoothing is None and softcap is None
    depth, width, warps, programs = launch_shape(vocab, logits.itemsize, is_plain)
    options = {}
    if not INTERPRETED:
        programs *= multiprocessors(logits.device)
        options = {"num_warps": warps, "maxnreg": registers_per_thread(is_plain)}
    if n == 0:
        return losses
    with torch.cuda.device_of(logits):
        rows_kernel[(n if INTERPRETED else min(n, programs),)](
            logits,
            logits if grad is None else grad,
            losses,
            y,
            target_weight,
            target_weight if smoothing is None else smoothing,
            target_weight if smoothing is None else smoothing.sum(),
            target_weight if upstream is None else upstream,
            n,
            vocab,
            logits.stride(0),
            0 if grad is None else grad.stride(0),
            softcap=softcap,
            z_loss=z_loss,
            with_grad=upstream is not None,
            smoothed=smoothing is not None,
            uniform=smoothing is not None and smoothing.stride(0) == 0,
            depth=depth,
            width=width,
            **options,
        )
    return losses


def scale(grad: Tensor, factor: Tensor) -> None:
    if grad.numel() == 0:
        return
    programs = 8 if INTERPRETED else 8 * multiprocessors(grad.device)
    with torch.cuda.device_of(grad):
        scale_kernel[(programs,)](grad, factor, grad.numel(), size=4096)


losses_and_gradient, losses_and_gradient_, scale_ = register("_triton", launch, scale)
