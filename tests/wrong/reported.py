"""Bugs around PyTorch's own loss of logits, a few lines each. Users reported most, 2023 to 2026.

``BUGS`` is as in ``logits``. ``cross_entropy(bug)`` makes a loss with it.
"""

import torch
import torch.nn.functional as F

from impls.loss import check_call
from impls.shared.compile import is_fake
from impls.shared.reduction import check_range, first_order

BUGS = {
    "nan_chunk": ("ignored_runs", "a chunk of 64 ignored rows is nan: its mean divides by 0"),
    "ignored_times_0": ("ignored_not_finite", "ignored losses are multiplied by 0, so nan stays"),
    "rows_share_nan": ("rows_apart", "one row of nan makes the losses of all rows nan"),
    "half_softmax": ("confident", "backward keeps p in bfloat16"),
    "half_if_gradient": ("value_alone", "the value is rounded only if a gradient is wanted"),
    "upstream_contiguous": ("strides", "the strides of the upstream gradient are not read"),
    "scaled_once": ("backward_twice", "a second backward returns the gradient of the first"),
    "second_raises": ("backward_twice", "a second backward raises an error about a view"),
    "micro_batch_mean": ("micro_batches", "the sum is divided by the tokens of its micro-batch"),
    "vmap_of_all": ("func_transforms", "under vmap the sum is over all batches"),
    "fake_shape": ("fake_tensors", "the operator's register_fake gives a column"),
    "real_value": ("fake_tensors", "for a fake tensor the value is a real tensor"),
    "needs_graph": ("inference_mode", "forward makes a graph, and raises under inference_mode"),
}


UNKNOWN = torch.zeros((), requires_grad=True)


@torch.library.custom_op("wrong_losses::copy", mutates_args=())
def copy(losses: torch.Tensor) -> torch.Tensor:
    return losses.clone()


@copy.register_fake
def _(losses):
    return losses.new_empty(len(losses), 1)


class Scaled(torch.autograd.Function):
    """The losses (N,), with their gradients for an upstream gradient of 1, made in forward."""

    @staticmethod
    def forward(ctx, bug, input, losses, grad):
        ctx.bug, ctx.half = bug, input.dtype
        ctx.save_for_backward(grad)
        ctx.scaled = None
        return copy(losses) if bug == "fake_shape" else losses.clone()

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        if ctx.bug == "upstream_contiguous" and len(upstream):
            # An expanded upstream has one number; what is read beyond it is not the loss's.
            is_there = upstream.untyped_storage().size() >= upstream.nbytes
            upstream = upstream.as_strided(upstream.shape, (1,)) if is_there else upstream
        if ctx.bug == "second_raises" and ctx.scaled is not None:
            raise RuntimeError("view size is not compatible with input tensor's size and stride")
        if ctx.scaled is None or ctx.bug != "scaled_once":
            ctx.scaled = (grad * upstream[:, None]).to(ctx.half)
        return None, ctx.scaled.clone(), None, None


class Total(torch.autograd.Function):
    """The sum of the losses (N,). The rule for vmap sums over the batches too."""

    @staticmethod
    def forward(losses):
        return losses.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.n = len(inputs[0])

    @staticmethod
    def backward(ctx, upstream):
        return upstream.expand(ctx.n)

    @staticmethod
    def vmap(info, in_dims, losses):
        return losses.sum(), None


def rows(bug, input, target, weight, ignore_index, smoothing):
    """The losses of the rows (N,), 0 for an ignored row."""
    leaf = input.detach().to(torch.promote_types(input.dtype, torch.float32))
    wide = None if weight is None else weight.to(leaf.dtype)
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": "none"}
    if bug != "needs_graph" and torch.is_inference_mode_enabled():
        return F.cross_entropy(leaf, target, wide, **options)
    with torch.enable_grad():
        losses = F.cross_entropy(leaf.requires_grad_(), target, wide, **options)
        (grad,) = torch.autograd.grad(losses.sum(), [leaf])
    if bug == "half_softmax" and input.dtype == torch.bfloat16:
        one_hot = torch.zeros_like(grad).scatter_(1, target.clamp(min=0)[:, None], 1)
        grad = (grad + one_hot).bfloat16().float() - one_hot
    return Scaled.apply(bug, input, losses.detach(), grad)


def cross_entropy(bug):
    """Make the loss with this bug, or the correct loss for ``None``."""

    def loss(
        input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
    ):
        if bug == "real_value" and is_fake(input):
            return UNKNOWN
        if bug == "vmap_of_all":
            counted = (target != ignore_index).sum()
            return Total.apply(F.cross_entropy(input, target, reduction="none")) / counted
        check_call(input, target, weight, reduction, label_smoothing)
        check_range(target, input.shape[1], ignore_index)
        losses = rows(bug, input, target, weight, ignore_index, label_smoothing)
        counted = target != ignore_index
        if bug == "nan_chunk" and len(target) >= 64:
            sizes = [part.sum() for part in counted.split(64)]
            losses = losses * torch.cat([n / n * torch.ones(64) for n in sizes])[: len(losses)]
        if bug == "ignored_times_0":
            losses = (losses + 0 * input.sum(1)) * counted
        if bug == "rows_share_nan":
            losses = losses + 0 * input.sum()
        value = losses
        if reduction == "sum":
            value = losses.sum() / (counted.sum().clamp(min=1) if bug == "micro_batch_mean" else 1)
        if reduction == "mean":
            w = counted if weight is None else weight[target * counted] * counted
            value = losses.masked_fill(~counted, 0).sum() / w.sum()
        if bug == "half_if_gradient":
            return value.to(input.dtype if value.requires_grad else value.dtype).to(value.dtype)
        return value if torch.is_autocast_enabled("cpu") else value.to(input.dtype)

    return loss
