"""A correct loss over ranks with a switch for each bug: see ``logits``."""

import torch
import torch.distributed as dist

from impls.loss import autocast, check_call
from impls.shared.reduction import first_order, result_dtype

BUGS = {
    "local_smoothing": ("options", "ε is spread over V_r classes, not V"),
    "input_not_reduced": ("options", "the input's gradient is this rank's part"),
    "input_averaged": ("options", "the input's gradient is the mean over the ranks"),
    "first_ranks_target": ("options", "only rank 0 looks for the logit of a target"),
    "every_ranks_target": ("options", "each rank takes its own logit for the target's logit"),
    "local_maximum": ("options", "each rank subtracts its own maximum from the target's logit"),
    "not_rescaled": ("options", "ranks add up sums of exponentials with different maxima"),
    "no_maximum": ("extreme_logits", "no maximum is subtracted: the exponentials overflow"),
    "local_norm": ("options", "the mean divides by the weights of this rank's targets"),
    "local_sum_of_q": ("options", "in backward, Σ q is only over the classes of this rank"),
    "upstream": ("upstream", "backward takes the upstream gradient for one"),
    "offset": (
        "first_and_last",
        "the first class of a slice counts as the last of the slice before",
    ),
    "last_of_slice": ("sizes", "the sum leaves out the last class of a large slice"),
    "empty_slice": ("sizes", "the maximum of no classes is nan"),
    "global_range": ("out_of_range", "a target of -1 passes the check of the range"),
    "ranks_differ": ("options", "one rank rounds the value to half precision"),
    "overwrites_slice": ("arguments_untouched", "one rank's weight becomes its gradient"),
}


def summed(tensor, group):
    dist.all_reduce(tensor, group=group)
    return tensor


class Loss(torch.autograd.Function):
    """Forward keeps the softmax. Backward makes the gradient from it."""

    @staticmethod
    def forward(ctx, bug, group, input, weight, bias, y, here, q_y, q, sum_q):
        dtype = torch.promote_types(input.dtype, torch.float32)
        x = (input @ weight.T).to(dtype)
        if bias is not None:
            x = (x + bias).to(input.dtype).to(dtype)
        n, size = x.shape
        top = (
            x.amax(1)
            if size
            else x.new_full((n,), float("nan" if bug == "empty_slice" else "-inf"))
        )
        m = top.clone()
        dist.all_reduce(m, dist.ReduceOp.MAX, group)
        if bug == "no_maximum":
            m = torch.zeros_like(m)
        if bug == "local_maximum":
            m = top.where(here, m)
        s = (x - (top if bug == "not_rescaled" else m)[:, None]).exp()
        if bug == "last_of_slice" and size > 1000:
            s = s[:, :-1]
        s = summed(s.sum(1), group)
        log_p = x - m[:, None] - s.log()[:, None]
        one_hot = (torch.arange(size) == y[:, None]) & here[:, None]
        ours = log_p.where(one_hot, 0).sum(1)
        if bug == "first_ranks_target" and dist.get_rank(group) > 0:
            ours.zero_()
        if bug == "every_ranks_target" and size:
            ours = log_p[:, 0].where(~here, ours)
        ours = q_y * ours + (log_p * q).where(q > 0, 0).sum(1)
        ctx.bug, ctx.group = bug, group
        ctx.save_for_backward(input, weight, bias, log_p.exp(), one_hot, q_y, q, sum_q)
        value = -summed(ours, group)
        if bug == "ranks_differ" and dist.get_rank(group) == 1:
            value = value.half().to(dtype)
        return value

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        input, weight, bias, p, one_hot, q_y, q, sum_q = ctx.saved_tensors
        if ctx.bug == "upstream":
            upstream = torch.ones_like(upstream) / max(len(upstream), 1)
        if ctx.bug == "local_sum_of_q":
            sum_q = q.sum()
        g = p * (q_y + sum_q)[:, None] - q - q_y[:, None] * one_hot
        g = (g * upstream[:, None]).to(input.dtype)
        grad_input = (g @ weight).to(p.dtype)
        if ctx.bug != "input_not_reduced":
            summed(grad_input, ctx.group)
        if ctx.bug == "input_averaged":
            grad_input /= dist.get_world_size(ctx.group)
        grad_weight = g.T @ input
        if ctx.bug == "overwrites_slice" and dist.get_rank(ctx.group) == 1:
            weight.data.copy_(grad_weight)
        grad_bias = None if bias is None else g.sum(0)
        return None, None, grad_input.to(input.dtype), grad_weight, grad_bias, *[None] * 5


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    group=None,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    bug=None,
):
    """The loss with this bug, or the correct loss for ``None``."""
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    size, rank = len(linear_weight), dist.get_rank(group)
    sizes = [torch.tensor([0]) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([size]), group)
    start, v = int(sum(sizes[:rank])), int(sum(sizes))
    counts = target != ignore_index
    least = -1 if bug == "global_range" else 0
    outside = target[counts & ((target < least) | (target >= v))]
    if len(outside):
        raise IndexError(f"target {int(outside[0])} out of range")
    y = target.masked_fill(~counts, 0) - start
    here = (y > 0) & (y <= size - 1) if bug == "offset" else (y >= 0) & (y < size)
    dtype = torch.promote_types(input.dtype, torch.float32)
    w = torch.ones(size, dtype=dtype) if weight is None else weight.to(dtype)
    w_y = torch.zeros(len(y), dtype=dtype)
    w_y[here] = w[y[here]]
    ours = w_y.clone()
    summed(w_y, group)
    q = label_smoothing / (size if bug == "local_smoothing" and size else v) * w
    sum_q = summed(q.sum(), group)
    losses = Loss.apply(
        bug,
        *(group, input, linear_weight, linear_bias),
        *(y, here, (1 - label_smoothing) * w_y, q, sum_q),
    )
    losses = losses.masked_fill(~counts, 0)
    if reduction == "none":
        value = losses
    elif reduction == "sum":
        value = losses.sum()
    else:
        value = losses.sum() / (ours if bug == "local_norm" else w_y).masked_fill(~counts, 0).sum()
    return value.to(result_dtype(input))
