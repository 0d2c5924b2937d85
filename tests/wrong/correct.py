"""Right losses in other forms than ours. The gate must pass each."""

import math

import torch
import torch.nn.functional as F

from impls.loss import autocast
from impls.shared.reduction import first_order, result_dtype

LOG2_E = math.log2(math.e)


def log_softmax_and_nll(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    if not len(target):
        return F.cross_entropy(input, target, weight, reduction=reduction)
    return F.nll_loss(input.log_softmax(1), target, weight, None, ignore_index, None, reduction)


def gradient_made_in_forward(input, target, *, reduction="mean"):
    """As in fused losses, forward makes the gradient for an upstream of 1. Backward scales it."""
    if reduction not in ("mean", "sum", "none"):
        raise KeyError(reduction)
    return MadeInForward.apply(input, target, reduction)


class MadeInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, reduction):
        if torch.is_inference_mode_enabled():
            return F.cross_entropy(input, target, reduction=reduction)
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            losses = F.cross_entropy(leaf, target, reduction="none")
            (grad,) = torch.autograd.grad(losses.sum(), [leaf])
        ctx.n = len(target) if reduction == "mean" else 1
        ctx.save_for_backward(grad)
        if reduction == "none":
            return losses.detach()
        return losses.detach().mean() if reduction == "mean" else losses.detach().sum()

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad * upstream.view(-1, 1) / ctx.n, None, None


class WithSetupContext(torch.autograd.Function):
    """The losses (N,). torch.func can transform it, and its backward has a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, y):
        return input.logsumexp(1) - input.gather(1, y[:, None]).squeeze(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        input, y = ctx.saved_tensors
        one_hot = torch.zeros_like(input).scatter(1, y[:, None], 1)
        return (input.softmax(1) - one_hot) * upstream[:, None], None


def with_setup_context(input, target, *, ignore_index=-100):
    if len(target) != len(input):
        raise RuntimeError("shapes do not match")
    counted = target != ignore_index
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    losses = WithSetupContext.apply(wide, target.long().where(counted, 0))
    value = losses.where(counted, 0).sum() / counted.sum()
    return value if torch.is_autocast_enabled("cpu") else value.to(input.dtype)


def checkpointed(input, linear_weight, target, *, linear_bias=None, reduction="mean"):
    """Forward does not keep the logits. Backward computes them again."""
    return torch.utils.checkpoint.checkpoint(
        lambda *a: F.cross_entropy(F.linear(*a), target, reduction=reduction),
        *(input, linear_weight, linear_bias),
        use_reentrant=False,
    )


def mean_of_hidden_states(input, linear_weight, target):
    return F.cross_entropy(F.linear(input, linear_weight), target)


def mean_that_ignores(input, target, ignore_index=-100):
    return F.cross_entropy(input, target, ignore_index=ignore_index)


def in_place(input, target, *, reduction="mean"):
    """The loss overwrites the logits and declares it."""
    value = gradient_made_in_forward(input, target, reduction=reduction)
    input.data.zero_()
    return value


class OneLse(torch.autograd.Function):
    """Forward keeps log-sum-exp as one number for each row, as most fused kernels do."""

    @staticmethod
    def forward(ctx, input, y, form):
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        if form == "base 2":
            x2 = x * LOG2_E
            m = x2.amax(1) if len(x) else x2[:, 0]
            lse = (m + (x2 - m[:, None]).exp2().sum(1).log2()) / LOG2_E
        elif form == "online":  # from the last slice of classes to the first
            lse = torch.full_like(x[:, 0], torch.finfo(x.dtype).min)
            for part in reversed(x.split(1000, 1)):
                lse = torch.logaddexp(lse, part.logsumexp(1))
        else:
            lse = x.logsumexp(1)
        ctx.save_for_backward(input, y, lse)
        return lse - x.gather(1, y[:, None]).squeeze(1)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        input, y, lse = ctx.saved_tensors
        grad = (input.to(lse.dtype) - lse[:, None]).exp()
        grad[torch.arange(len(y)), y] -= 1
        return (grad * upstream[:, None]).to(input.dtype), None, None


def lse_in_one_number(
    input, target, ignore_index=-100, reduction="mean", *, form="", value_dtype=None
):
    counted = target != ignore_index
    outside = counted & ((target < 0) | (target >= input.shape[1]))
    if len(target) != len(input) or outside.any():
        raise RuntimeError("shapes or targets do not match")
    if reduction not in ("mean", "sum", "none"):
        raise KeyError(reduction)
    losses = OneLse.apply(input, target.long() * counted, form).masked_fill(~counted, 0)
    wide = torch.is_autocast_enabled("cpu")
    losses_dtype = losses.dtype if wide else value_dtype or input.dtype
    if reduction == "none":
        return losses.to(losses_dtype)
    total = losses.sum()
    return (total / counted.sum() if reduction == "mean" else total).to(losses_dtype)


def lse_in_base_2(input, target, *, ignore_index=-100, reduction="mean"):
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return lse_in_one_number(input, target, form="base 2", **options)


def online_from_the_end(input, target, *, ignore_index=-100, reduction="mean"):
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return lse_in_one_number(input, target, form="online", **options)


def value_in_float32(input, target, *, ignore_index=-100, reduction="mean"):
    dtype = torch.promote_types(input.dtype, torch.float32)
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return lse_in_one_number(input, target, value_dtype=dtype, **options)


class ChunksInForward(torch.autograd.Function):
    """Forward makes the gradients, a chunk of tokens after another, from the last to the first."""

    @staticmethod
    def forward(ctx, input, weight, y, counted):
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_input = torch.zeros_like(input)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        value = grad_weight.new_zeros(())
        for rows in reversed(torch.arange(len(y)).split(256)):
            h, share = input[rows], counted[rows].to(wide)[:, None]
            log_p = F.linear(h, weight).to(wide).log_softmax(1)
            value -= (log_p.gather(1, y[rows, None]) * share).sum()
            g = log_p.exp() * share
            g.scatter_add_(1, y[rows, None], -share)
            g = g.masked_fill(share == 0, 0)
            grad_input[rows] = g.to(h.dtype) @ weight
            grad_weight += g.T @ h.to(wide)
        ctx.save_for_backward(grad_input, grad_weight.to(weight.dtype))
        return value

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        grad_input, grad_weight = ctx.saved_tensors
        upstream = upstream.to(grad_input.dtype)
        return grad_input * upstream, grad_weight * upstream, None, None


def chunks_from_the_end(input, linear_weight, target):
    input, linear_weight = autocast(input, linear_weight)
    if len(target) != len(input) or ((target < 0) | (target >= len(linear_weight))).any():
        raise RuntimeError("shapes or targets do not match")
    value = ChunksInForward.apply(input, linear_weight, target.long(), target >= 0) / len(target)
    return value.to(result_dtype(input))


CORRECT_LOSSES = {
    "log_softmax_and_nll": ("logits", log_softmax_and_nll),
    "gradient_made_in_forward": ("logits", gradient_made_in_forward),
    "with_setup_context": ("logits", with_setup_context),
    "in_place": ("logits", in_place),
    "mean_of_hidden_states": ("linear", mean_of_hidden_states),
    "mean_that_ignores": ("logits", mean_that_ignores),
    "lse_in_one_number": ("logits", lse_in_one_number),
    "lse_in_base_2": ("logits", lse_in_base_2),
    "online_from_the_end": ("logits", online_from_the_end),
    "value_in_float32": ("logits", value_in_float32),
    "chunks_from_the_end": ("linear", chunks_from_the_end),
    "checkpointed": ("linear", checkpointed),
    "torch's own": ("linear", getattr(F, "linear_cross_entropy", None)),
}
