"""A correct loss of hidden states with a switch for each bug: see ``logits``."""

import functools

import torch
import torch.nn.functional as F

from impls.loss import autocast
from impls.shared.reduction import result_dtype

BUGS = {
    "no_weight_gradient": ("options", "the classifier's weight has a gradient of zero"),
    "no_bias_gradient": ("options", "the bias has a gradient of zero"),
    "bias_not_recomputed": ("options", "backward recomputes the logits without the bias"),
    "last_rows": ("options", "rows beyond the last whole chunk have no gradient"),
    "last_classes": ("sizes", "classes beyond the last whole chunk of 4096 are dropped"),
    "mean_of_means": ("ignored", "the mean is the mean of the means of the chunks"),
    "ignored_weight": ("ignored", "ignored rows still add to the weight's gradient"),
    "first_upstream": ("upstream", "all rows take the first upstream element"),
    "upstream_not_for_weight": (
        "upstream",
        "the weight's gradient is not scaled (upstream is one)",
    ),
    "half_accumulation": ("dtypes", "the weight's gradient is summed in the dtype of the weight"),
    "many_chunks": ("many_chunks", "chunks of 512 tokens add to dW in bfloat16"),
    "main_grad": ("in_a_model", "backward adds to weight.grad and returns it (as main_grad does)"),
    "half_value": ("dtypes", "the rows' losses are summed in the dtype of the input"),
    "weight_contiguous": ("strides", "the strides of the weight are not read"),
    "overwrites_weight": ("arguments_untouched", "the weight becomes its gradient"),
    "one_logits_buffer": ("no_stale_state", "backward reads a buffer that the next call fills"),
    "frozen_weight": ("frozen", "if the weight is frozen, the input has no gradient"),
    "frozen_input": ("frozen", "if the input is frozen, the weight has no gradient"),
    "autocast": ("autocast", "under autocast, hidden states and weight of different dtypes raise"),
    "scaled_in_place": ("backward_twice", "backward scales the saved gradients in place"),
    "unscaled_layout": ("strides", "a mean's upstream gradient does not reach a transposed input"),
    "not_detached": (
        "tied_weights",
        "the gradients of forward count the way from the weight to the input too",
    ),
    "unused_weight": ("in_ddp", "if all rows are ignored, the value does not depend on the weight"),
    "ignored_batch": ("micro_batches", "if all rows are ignored, the weight's gradient is nan"),
}

_buffer: list[torch.Tensor] = []


class Loss(torch.autograd.Function):
    """Hidden states to (N,) losses."""

    @staticmethod
    def forward(ctx, bug, input, weight, bias, y, counts):
        dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        if bug == "weight_contiguous":
            weight = weight.as_strided(weight.shape, (weight.shape[1], 1), weight.storage_offset())
        x = (input @ weight.T).to(dtype)
        if bias is not None:
            x = (x + bias).to(input.dtype).to(dtype)
        if bug == "last_classes" and x.shape[1] > 4096:
            x[:, x.shape[1] // 4096 * 4096 :] = -1e9
        log_p = x - x.amax(1, keepdim=True) if len(x) else x
        log_p = log_p - log_p.exp().sum(1, keepdim=True).log()
        if bug == "bias_not_recomputed" and bias is not None:
            again = input @ weight.T
            p = again.to(dtype).softmax(1)
        else:
            p = log_p.exp()
        ctx.bug = bug
        _buffer[:] = [p]
        ctx.save_for_backward(input, weight, bias, p, y, counts)
        ctx.grads = None
        return -log_p.gather(1, y[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        bug = ctx.bug
        input, weight, bias, p, y, counts = ctx.saved_tensors
        if bug == "one_logits_buffer" and _buffer[0].shape == p.shape:
            p = _buffer[0]
        if bug == "first_upstream" and len(upstream):
            upstream = upstream[0].expand_as(upstream)
        if bug == "scaled_in_place" and ctx.grads is not None:
            for grad in ctx.grads:
                grad.mul_(upstream.abs().max())
            return None, *ctx.grads, None, None
        one_hot = torch.zeros_like(p).scatter_(1, y[:, None], 1)
        n = len(p)
        if bug == "last_rows":
            upstream = upstream * (torch.arange(n) < n // 2 * 2)
        g = (p - one_hot) * upstream[:, None]
        grad_input = (g.to(input.dtype) @ weight).to(input.dtype)
        if (
            bug == "unscaled_layout"
            and not input.is_contiguous()
            and len(set(upstream.tolist())) == 1
        ):
            grad_input /= upstream[0] * n
        for_weight = g
        if bug == "ignored_weight" and n:
            for_weight = (p - one_hot) * upstream.where(counts, upstream.abs().max())[:, None]
        if bug == "upstream_not_for_weight" and n:
            for_weight = (p - one_hot) * (upstream != 0)[:, None] / max(n, 1)
        if bug == "half_accumulation":
            grad_weight = torch.zeros_like(weight)
            for row in range(n):
                grad_weight += torch.outer(g[row].to(weight.dtype), input[row])
        elif bug == "many_chunks":
            grad_weight = torch.zeros_like(weight)
            for part, h in zip(for_weight.split(512), input.split(512), strict=True):
                grad_weight += (part.T @ h.to(g.dtype)).to(weight.dtype)
        else:
            grad_weight = (for_weight.T @ input.to(g.dtype)).to(weight.dtype)
        grad_bias = None if bias is None else g.sum(0).to(bias.dtype)
        if bug == "no_weight_gradient":
            grad_weight = torch.zeros_like(grad_weight)
        if bug == "no_bias_gradient" and bias is not None:
            grad_bias = torch.zeros_like(grad_bias)
        if bug == "ignored_batch" and n and not counts.any():
            grad_weight = torch.full_like(grad_weight, torch.nan)  # memory that nothing wrote
        if bug == "overwrites_weight":
            weight.data.copy_(grad_weight)
        if bug == "main_grad" and weight.grad is not None:
            grad_weight = grad_weight + weight.grad
        if bug == "frozen_input" and not ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(grad_weight)
        if bug == "frozen_weight" and not ctx.needs_input_grad[2]:
            grad_input = torch.zeros_like(grad_input)
        ctx.grads = [grad_input, grad_weight] + ([grad_bias] if bias is not None else [])
        return None, grad_input, grad_weight, grad_bias, None, None


class NotDetached(torch.autograd.Function):
    """The mean. Forward makes the gradients in the caller's graph, not in a graph of its own."""

    @staticmethod
    def forward(ctx, input, weight, bias, target, ignore_index):
        tensors = (input, weight, bias)
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(*tensors), target, ignore_index=ignore_index)
            needed = [t for t in tensors if t is not None and t.requires_grad]
            grads = iter(torch.autograd.grad(value, needed, retain_graph=True) if needed else ())
        ctx.save_for_backward(*(next(grads) if need else None for need in ctx.needs_input_grad))
        return value.detach()

    @staticmethod
    def backward(ctx, upstream):
        return tuple(None if grad is None else grad * upstream for grad in ctx.saved_tensors)


def linear_cross_entropy(bug):
    """Make the loss with this bug, or the correct loss for ``None``."""

    def loss(
        input, linear_weight, target, *, linear_bias=None, ignore_index=-100, reduction="mean"
    ):
        if bug != "autocast":
            input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
        n, (v, d) = len(input), linear_weight.shape
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"bad reduction {reduction!r}")
        if target.shape != (n,) or target.dtype != torch.int64 or input.shape[1] != d:
            raise ValueError(
                f"input {tuple(input.shape)}, weight {(v, d)}, target {tuple(target.shape)} "
                f"{target.dtype}, int64"
            )
        if linear_weight.dtype != input.dtype:
            raise ValueError(f"input is {input.dtype}, weight {linear_weight.dtype}")
        counts = target != ignore_index
        outside = target[counts & ((target < 0) | (target >= v))]
        if len(outside):
            raise IndexError(f"target {int(outside[0])} out of range")
        y = target.masked_fill(~counts, 0)
        losses = Loss.apply(bug, input, linear_weight, linear_bias, y, counts)
        losses = losses.masked_fill(~counts, 0)
        if bug == "unused_weight" and n and not counts.any():
            losses = 0 * input.sum(1)
        if reduction == "none":
            value = losses
        elif reduction == "sum":
            value = losses.sum()
        elif bug == "not_detached":
            tensors = (input, linear_weight, linear_bias)
            value = NotDetached.apply(*tensors, target, ignore_index)
        elif bug == "mean_of_means":
            means = [
                a.sum() / b.sum() for a, b in zip(losses.split(2), counts.split(2), strict=True)
            ]
            value = torch.stack(means).mean() if means else losses.sum() / 0
        else:
            value = losses.sum() / counts.sum()
        if bug == "half_value" and n and reduction != "none":
            share = losses.to(input.dtype) / (counts.sum() if reduction == "mean" else 1)
            value = functools.reduce(torch.add, share)
        return value.to(result_dtype(input))

    return loss
