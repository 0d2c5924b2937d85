"""Logits of one chunk of tokens at a time; their gradient overwrites them.

With logits x = h Wᵀ + b and g = dloss/dx, a chunk writes dh = g W, and adds gᵀ h to dW and Σ_n g_n
to db (``impls.shared.chunks``). For "mean" and "sum", forward knows each row's share in the loss
and makes the gradients; backward multiplies them by the upstream gradient. For "none", backward
goes over the chunks again.

``accum_dtype`` is the dtype in which the chunks' dW are summed, by default that of dW. Each chunk
rounds the sum again: in bfloat16 its error grows as the root of the number of chunks. With
``torch.float32`` the error does not grow, for 4 V D bytes more.

With ``filter_eps`` the products leave out columns of g. Most columns of a trained model's softmax
are all but 0 (Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009). A column of a
chunk's g is left out if no entry exceeds filter_eps s in absolute value, where s is the largest
share of a row of the chunk (1/N for a mean). Such entries are small but many, and their rows of W
are alike. So each row of dh receives the sum of the entries that are left out, times the mean of
their rows of W. Row i of dh is then off by at most 2 filter_eps s V max_j |W_j|, and row j of dW by
at most filter_eps s Σ_i |h_i|. On CUDA the host waits for the number of columns.
"""

import torch
import torch.nn.functional as F

from impls.kernels import cross_entropy as kernel
from impls.loss import autocast, check_call
from impls.shared.chunks import (
    accumulate,
    logits_of_chunks,
    losses_and_gradient,
    new_gradients,
    scale,
)
from impls.shared.compile import compile_whole
from impls.shared.reduction import (
    TargetDistribution,
    denominator,
    first_order,
    needs_gradient,
    reduce_counted,
    result_dtype,
    shares,
    target_distribution,
)

if not torch.cuda.is_available():  # CUDA needs no C++
    kernel.check_available()


@compile_whole
def largest_of_columns(g):
    """(V,) of (C, V): each column's largest absolute value."""
    return g.abs().amax(0)


def accumulate_filtered(g, h, linear_weight, grad_input, grad_weight, bound):
    """dh += g W and dW += gᵀ h, without the columns of g whose entries are all within ``bound``."""
    kept = (~(largest_of_columns(g) <= bound)).nonzero().squeeze(1)  # a nan is kept
    for columns in kept.split(len(g)):
        part = g[:, columns]
        if grad_input is not None:
            grad_input.addmm_(part, linear_weight[columns])
        if grad_weight is not None:
            grad_weight.index_add_(0, columns, (part.T @ h).to(grad_weight.dtype))
    if grad_input is not None:
        left_out = torch.ones_like(g[0]).index_fill_(0, kept, 0)
        mean = F.normalize(g.sum(0).abs() * left_out, p=1.0, dim=0) @ linear_weight
        grad_input.addr_(g @ left_out, mean)


def losses_and_gradients(tensors, q, upstream, needed, softcap, z_loss, filter_eps, accum_dtype):
    """The losses (N,) and, given ``upstream`` (N,), the gradients of the tensors that need one."""
    input, linear_weight, _ = tensors
    losses = q.target_weight.new_empty(len(input))
    grads = new_gradients(tensors, needed, filter_eps is not None, accum_dtype)
    grad_input, grad_weight, grad_bias = grads
    for chunk, x in logits_of_chunks(*tensors):
        q_chunk = q._replace(y=q.y[chunk], target_weight=q.target_weight[chunk])
        share = None if upstream is None else upstream[chunk]
        losses[chunk], g = losses_and_gradient(x, q_chunk, share, softcap, z_loss)
        if g is None:
            continue
        dh = None if grad_input is None else grad_input[chunk]
        if filter_eps is None:
            accumulate(g, input[chunk], linear_weight, dh, grad_weight, chunk.start == 0)
        else:
            bound = filter_eps * share.abs().max()
            accumulate_filtered(g, input[chunk], linear_weight, dh, grad_weight, bound)
        if grad_bias is not None:
            grad_bias += g.sum(0)
    return losses, grads


class FusedLoss(torch.autograd.Function):
    """Hidden states, weight and bias to Σ losses / denominator over the counted rows.

    Without a denominator, to the losses (N,).
    """

    @staticmethod
    def forward(
        ctx, input, weight, bias, y, target_weight, smoothing, counted, denominator, *options
    ):
        tensors, q = (input, weight, bias), TargetDistribution(y, target_weight, smoothing)
        ctx.save_for_backward(*tensors, *q, counted, denominator)
        with_grads, *ctx.options = options
        share = shares(counted, denominator) if denominator is not None and with_grads else None
        needed = ctx.needs_input_grad[:3] if share is not None else [False] * 3
        losses, ctx.grads = losses_and_gradients(tensors, q, share, needed, *ctx.options)
        return reduce_counted(losses, counted, denominator)

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        *tensors, y, target_weight, smoothing, counted, denominator = ctx.saved_tensors
        q, needed = TargetDistribution(y, target_weight, smoothing), ctx.needs_input_grad[:3]
        grads, ctx.grads = ctx.grads, None
        per_row = denominator is None
        if per_row or grads is None:  # None: an earlier backward has taken those of forward
            share = upstream.masked_fill(~counted, 0) if per_row else shares(counted, denominator)
            _, grads = losses_and_gradients(tensors, q, share, needed, *ctx.options)
        for grad in grads:
            if grad is not None and not per_row:
                scale(grad, upstream)
        dtype = tensors[0].dtype
        return *(None if grad is None else grad.to(dtype) for grad in grads), *[None] * 10


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    softcap=None,
    z_loss=0.0,
    filter_eps=None,
    accum_dtype=None,
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    vocab, dtype = len(linear_weight), input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    counted = target != ignore_index
    divisor = denominator(target, counted, weight, reduction, q.target_weight.dtype)
    tensors = (input, linear_weight, linear_bias)
    options = (needs_gradient(*tensors), softcap, z_loss, filter_eps, accum_dtype)
    value = FusedLoss.apply(*tensors, *q, counted, divisor, *options)
    return value.to(result_dtype(input))
