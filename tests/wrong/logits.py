"""A correct loss of logits with a switch for each bug.

``BUGS`` gives for each bug the property of ``tests.gate`` that must reject it, and a description.
``cross_entropy(bug)`` makes a loss with it. ``reports`` has the reports of bugs that shipped.
"""

import functools

import torch

from impls.shared.reduction import result_dtype

BUGS = {
    "zeros": ("options", "the gradient is zero"),
    "first_upstream": ("upstream", "all rows take the first upstream element"),
    "upstream_is_one": ("upstream", "backward takes the upstream gradient for 1"),
    "first_ignored": ("ignored", "no gradients if the first token is ignored"),
    "vocab_256": ("sizes", "classes beyond the last multiple of 256 are dropped"),
    "vocab_65536": ("sizes", "classes from 65536 on are dropped"),
    "int16_targets": ("sizes", "targets are kept in 16 bits"),
    "overwrites_in_forward": ("arguments_untouched", "the input becomes its gradient"),
    "overwrites_in_backward": ("arguments_untouched", "backward reuses the input"),
    "no_maximum": ("extreme_logits", "no maximum is subtracted before exp"),
    "maximum_of_all": ("extreme_logits", "all rows share a maximum"),
    "lse_in_one": ("precise_lse", "maximum and log of the sum share a rounded number"),
    "nan_where_all_inf": ("extreme_logits", "a slice of -inf alone makes its row nan"),
    "mean_counts_ignored": ("ignored", "the mean divides by all rows"),
    "ignored_gradient": ("ignored", "ignored rows keep their gradient"),
    "ignore_index_fixed": ("ignored", "only -100 is ignored"),
    "ignores_negative": ("ignored", "negative targets are ignored, other targets never"),
    "all_ignored_is_zero": ("all_ignored", "the mean of no rows is 0"),
    "no_share": ("all_ignored", "if no row counts, the gradients are nan"),
    "empty_raises": ("empty", "an empty batch raises"),
    "weight_mean": ("options", "the weighted mean divides by the count"),
    "weight_backward": ("options", "backward forgets the class weights"),
    "smoothing_backward": ("options", "backward forgets label smoothing"),
    "smoothing_v_minus_1": ("options", "label smoothing spreads over V - 1 classes"),
    "smoothing_unweighted": ("options", "label smoothing leaves out the class weights"),
    "sum_is_mean": ("options", "the sum is a mean"),
    "n_backward": ("options", "backward of the mean forgets to divide"),
    "no_softmax": ("options", "the gradient is -one_hot"),
    "no_one_hot": ("options", "the gradient is softmax"),
    "a_little_off": ("options", "the gradient is off by one part in 10,000"),
    "fast_exp": ("options", "exp is a polynomial of degree 3"),
    "last_row": ("sizes", "rows beyond the last multiple of 4 are dropped"),
    "last_class": ("first_and_last", "the last class is taken for padding"),
    "class_zero": ("first_and_last", "class 0 is taken for padding"),
    "half_sums": ("dtypes", "float16 and bfloat16 are summed in their own dtype"),
    "float32_value": ("value_dtype", "the value is always float32"),
    "input_contiguous": ("strides", "the strides of the input are not read"),
    "column_major": ("strides", "a transposed input is its own gradient"),
    "target_contiguous": ("strides", "the strides of the target are not read"),
    "clamps_targets": ("out_of_range", "targets out of range are clamped"),
    "wraps_targets": ("out_of_range", "negative targets count from the end"),
    "broadcasts": ("mismatches", "too few targets are repeated"),
    "stale_softmax": ("no_stale_state", "backward uses the softmax of the last forward"),
    "one_buffer": ("no_stale_state", "all gradients share memory"),
    "scaled_in_place": ("backward_twice", "backward scales the saved gradient in place"),
    "noise": ("deterministic", "sums depend on the order of threads"),
    "needs_grad": ("frozen", "an input without a gradient raises"),
    "no_grad": ("frozen", "under no_grad the value is 0"),
    "sets_grad": ("accumulates", "backward overwrites .grad"),
    "second_derivative": ("double_backward", "the saved softmax is taken for a constant"),
    "create_graph": ("double_backward", "create_graph ends in an error about a view"),
    "detached": ("not_a_leaf", "the gradient stops at the input"),
    "autocast_value": ("autocast", "under autocast the value has the logits' dtype, not float32"),
    "sum_by_default": ("positional", "the default reduction is the sum"),
    "softcap_is_clamp": ("softcap_and_z_loss", "softcap clamps the logits"),
    "softcap_backward": ("softcap_and_z_loss", "backward forgets the softcap"),
    "z_loss_backward": ("softcap_and_z_loss", "backward forgets the z-loss"),
    "z_loss_ignored": ("softcap_and_z_loss", "ignored rows have a z-loss"),
    "z_loss_uncapped": ("softcap_and_z_loss", "the z-loss uses the logits before softcap"),
    "z_loss_unweighted": ("softcap_and_z_loss", "the mean divides the z-loss by the count"),
}

_last: list[torch.Tensor] = []
_buffer = torch.empty(1 << 21)


class Rows(torch.autograd.Function):
    """(N, V) logits to (N,) losses."""

    @staticmethod
    def forward(ctx, bug, input, y, counts, w, everywhere):
        x = input if bug == "half_sums" else input.to(w.dtype)
        if bug == "input_contiguous":
            x = x.as_strided(x.shape, (x.shape[1], 1), x.storage_offset())
        n, v = x.shape
        top = x.amax(1, keepdim=True) if n else x[:, :1]
        if bug == "no_maximum":
            top = torch.zeros_like(top)
        if bug == "maximum_of_all" and n:
            top = x.max().expand_as(top)
        exp = (x - top).exp()
        if bug == "fast_exp":
            t = (x - top) / 64
            exp = (1 + t + t**2 / 2 + t**3 / 6) ** 64
        if bug == "nan_where_all_inf" and v > 4096 and bool((x[:, :4096] == -torch.inf).any()):
            exp = exp * torch.nan
        if bug == "vocab_256" and v > 256:
            exp[:, v // 256 * 256 :] = 0
        if bug == "vocab_65536":
            exp[:, 65536:] = 0
        log_sum = exp.sum(1, keepdim=True).log()
        if bug == "half_sums":
            log_sum = sum(part.sum(1, keepdim=True) for part in exp.split(8, 1)).log()
        log_p = x - (top + log_sum) if bug == "lse_in_one" else x - top - log_sum
        if bug == "fast_exp":
            log_p = exp.log() - log_sum
        if bug == "noise":
            log_p = log_p + 1e-6 * torch.randn_like(log_p)
        losses = -w * log_p.gather(1, y[:, None]).squeeze(1)
        total = w
        if everywhere is not None:
            losses = losses - (log_p * everywhere).sum(1)
            total = w + everywhere.sum()
        p = log_p.exp() * (exp != 0)
        if bug == "last_row" and n > 4:
            losses[n // 4 * 4 :] = 0
            p[n // 4 * 4 :] = 0
        ctx.bug, ctx.smoothing = bug, everywhere is not None
        ctx.save_for_backward(input, p, y, w, total, everywhere, counts)
        ctx.grad = None
        _last[:] = [p]
        if bug == "overwrites_in_forward":
            input.data.copy_(p)
        return losses

    @staticmethod
    def gradient(ctx, saved, upstream):
        input, p, y, w, total, everywhere, counts = saved
        bug = ctx.bug
        if bug == "stale_softmax" and _last[0].shape == p.shape:
            p = _last[0]
        if bug == "weight_backward":
            total, w = torch.ones_like(total), torch.ones_like(w)
        if bug == "smoothing_backward":
            everywhere, total = None, w
        grad = p * total[:, None]
        if bug == "no_softmax":
            grad = torch.zeros_like(grad)
        if bug != "no_one_hot":
            grad = grad.scatter_add(1, y[:, None], -w[:, None])
        if everywhere is not None:
            grad = grad - everywhere
        if bug == "a_little_off":
            grad = grad * (1 + 1e-4)
        if bug == "zeros":
            grad = torch.zeros_like(grad)
        if bug == "column_major" and input.stride(1) != 1:
            grad = input.to(grad.dtype)
        if bug == "first_ignored" and len(counts) and not counts[0]:
            grad = torch.zeros_like(grad)
        if bug == "first_upstream" and len(upstream):
            upstream = upstream[0].expand_as(upstream)
        if bug == "upstream_is_one":
            upstream = torch.ones_like(upstream)
        return grad * upstream[:, None]

    @staticmethod
    def backward(ctx, upstream):
        bug = ctx.bug
        if torch.is_grad_enabled() and bug != "second_derivative":
            view = "view size is not compatible with input tensor's size and stride"
            raise RuntimeError(view if bug == "create_graph" else "no second derivative")
        saved = ctx.saved_tensors  # once: a checkpoint makes them anew, and a second time raises
        input = saved[0]
        if bug == "scaled_in_place":
            if ctx.grad is None:
                ctx.grad = Rows.gradient(ctx, saved, torch.ones_like(upstream))
            grad = ctx.grad.mul_(upstream[:, None])
        elif bug == "ignored_gradient":
            largest = upstream.abs().max() if len(upstream) else upstream
            grad = Rows.gradient(ctx, saved, torch.where(upstream == 0, largest, upstream))
        else:
            grad = Rows.gradient(ctx, saved, upstream)
        grad = grad.to(input.dtype)
        if bug == "overwrites_in_backward":
            input.data.copy_(grad)
        if bug == "one_buffer":
            grad = _buffer[: grad.numel()].view_as(grad).copy_(grad)
        if bug == "sets_grad":
            input.grad = None
        return None, grad, None, None, None, None


def cross_entropy(bug):
    """Make the loss with this bug, or the correct loss for ``None``."""

    def loss(
        input,
        target,
        weight=None,
        *,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
        softcap=None,
        z_loss=0.0,
    ):
        if input.dim() != 2 or reduction not in ("mean", "sum", "none"):
            raise ValueError(f"bad shape {tuple(input.shape)} or reduction {reduction!r}")
        n, v = input.shape
        if bug == "broadcasts" and 0 < len(target) < n:
            target = target[torch.arange(n) % len(target)]
        if target.shape != (n,) or target.dtype != torch.int64:
            raise ValueError(f"target is {target.dtype} {tuple(target.shape)}, not int64 ({n},)")
        if weight is not None and (weight.shape != (v,) or weight.dtype != input.dtype):
            raise ValueError(f"weight is {weight.dtype} ({len(weight)},), not {input.dtype} ({v},)")
        if bug == "empty_raises" and n == 0:
            raise RuntimeError("cannot reduce no rows")
        if bug == "needs_grad" and torch.is_grad_enabled() and not input.requires_grad:
            raise RuntimeError("the input needs no gradient")
        if bug == "target_contiguous":
            target = target.as_strided((n,), (1,), target.storage_offset())
            target = target.clamp(0, v - 1)
        if bug == "ignore_index_fixed":
            counts = target != -100
            marked = counts & (target == ignore_index)
            target = target.clamp(0, v - 1).where(marked, target)
        elif bug == "ignores_negative":
            counts = target >= 0
        else:
            counts = target != ignore_index
        if bug == "last_class":
            counts = counts & (target != v - 1)
        if bug == "class_zero":
            counts = counts & (target != 0)
        if bug == "clamps_targets":
            target = target.clamp(0, v - 1).where(counts, target)
        if bug == "wraps_targets":
            target = torch.where(counts & (target < 0) & (target >= -v), target + v, target)
        outside = target[counts & ((target < 0) | (target >= v))]
        if len(outside):
            raise IndexError(f"target {int(outside[0])} out of range")
        y = target.masked_fill(~counts, 0)
        if bug == "int16_targets":
            y = y.to(torch.int16).to(torch.int64) % v
        dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        if bug == "half_sums":
            dtype = input.dtype
        w = input.new_ones(v, dtype=dtype) if weight is None else weight.to(dtype)
        everywhere = None
        if label_smoothing > 0:
            classes = v - 1 if bug == "smoothing_v_minus_1" else v
            share = torch.ones_like(w) if bug == "smoothing_unweighted" else w
            everywhere = label_smoothing / classes * share
        if bug == "detached":
            input = input.detach().requires_grad_(input.requires_grad)
        x = input
        if softcap is not None:
            x = softcap * torch.tanh(input.to(dtype) / softcap)
        if bug == "softcap_is_clamp" and softcap is not None:
            x = input.clamp(-softcap, softcap)
        if bug == "softcap_backward":
            x = input + (x - input).detach()
        losses = Rows.apply(bug, x, y, counts, (1 - label_smoothing) * w[y], everywhere)
        of_all, squares = losses, torch.zeros_like(losses)
        if z_loss:
            of = input if bug == "z_loss_uncapped" else x
            squares = z_loss * of.to(dtype).logsumexp(1).square()
        if bug == "z_loss_backward":
            squares = squares.detach()
        if bug == "z_loss_unweighted" and reduction == "mean" and weight is not None:
            squares = squares * (w[y] * counts).sum() / counts.sum()
        if bug == "z_loss_ignored":
            losses = losses.masked_fill(~counts, 0) + squares
        else:
            losses = (losses + squares).masked_fill(~counts, 0)
        if bug == "no_grad" and not torch.is_grad_enabled():
            losses = losses * 0
        if reduction == "mean":
            unweighted = weight is None or bug == "weight_mean"
            number = counts.sum() if unweighted else (w[y] * counts).sum()
            if bug == "mean_counts_ignored":
                number = n
            if bug == "all_ignored_is_zero":
                number = max(number, 1)
            if bug == "no_share":
                losses, number = of_all * (counts / number), 1
            if bug == "n_backward":
                value = losses.sum() + (losses.sum() / number - losses.sum()).detach()
            else:
                value = losses.sum() / number
        elif reduction == "sum":
            value = losses.mean() if bug == "sum_is_mean" else losses.sum()
        else:
            value = losses
        if bug == "float32_value":
            return value
        return value.to(input.dtype if bug == "autocast_value" else result_dtype(input))

    if bug == "sum_by_default":
        return functools.wraps(loss)(
            lambda *args, **options: loss(*args, **{"reduction": "sum"} | options)
        )
    return loss
