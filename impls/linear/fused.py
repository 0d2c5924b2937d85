"""Logits of a chunk of tokens at a time, in one buffer, where their gradient takes their place.

With logits x = h Wᵀ + b and g = dloss/dx, a chunk adds g W to its rows of dh, gᵀ h to dW and Σ g to
db. For "mean" and "sum" a row's share in the loss is known in forward, which makes the gradients;
backward scales them. For "none" it is not: backward goes over the chunks again.

dW is summed in its own dtype, each chunk rounding it anew: in bfloat16 its error grows as the root
of the number of chunks. With ``accum_dtype=torch.float32`` it does not, for 4 V D bytes more.

With ``filter_eps``, the products leave out what is all but 0: the columns of a chunk's g in which
nothing exceeds filter_eps s in absolute value, s being the largest share of a row of the chunk (1/N
for a mean). Most columns of a trained model's softmax are such (Cut Your Losses in Large-Vocabulary
Language Models, arXiv 2411.09009). Alone each is nothing, but they are many, and their rows of W
alike: so each row of dh has the sum of what it leaves out, times the mean of those rows of W. Row i
of dh is then off by at most 2 filter_eps s V max_j |W_j|, row j of dW by filter_eps s Σ_i |h_i|. On
CUDA, the number of columns is waited for.
"""

import torch
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared import rows
from impls.shared.chunks import losses_and_gradient, multiply, scale, tokens_a_chunk
from impls.shared.reduction import Q, distribution, first_order, norm, result_dtype


def multiply_filtered(g, h, linear_weight, grad_input, grad_weight, bound):
    """dh += g W and dW += gᵀ h, but for the columns of g in which nothing exceeds ``bound``."""
    kept = (~(rows.compiled_largest(g) <= bound)).nonzero().squeeze(1)  # a nan is kept
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


def over_chunks(tensors, q, upstream, needs_grad, softcap, z_loss, filter_eps, accum_dtype):
    """(N,) losses and, given ``upstream`` (N,), the gradients of the tensors that need one."""
    input, linear_weight, linear_bias = tensors
    n, vocab = len(input), len(linear_weight)
    chunks = -(-n // tokens_a_chunk(input))
    chunk = -(-n // max(chunks, 1))  # all of a size
    buffer = input.new_empty(chunk, vocab)
    losses = q.at_y.new_empty(n)
    for_input, for_weight, for_bias = (upstream is not None and need for need in needs_grad[:3])
    summed = filter_eps is not None or accum_dtype is not None or n == 0
    make = torch.zeros_like if summed else torch.empty_like
    grad_input = make(input) if for_input else None
    grad_weight = make(linear_weight, dtype=accum_dtype) if for_weight else None
    grad_bias = losses.new_zeros(vocab) if for_bias else None
    for start in range(0, n, max(chunk, 1)):
        part = slice(start, start + chunk)
        h, of_part = input[part], Q(q.y[part], q.at_y[part], q.everywhere)
        x = torch.mm(h, linear_weight.T, out=buffer[: len(h)])
        if linear_bias is not None:
            x += linear_bias
        share = None if upstream is None else upstream[part]
        losses[part], g = losses_and_gradient(x, of_part, share, softcap, z_loss)
        if upstream is None:
            continue
        factors = (g, h, linear_weight, grad_input[part] if for_input else None, grad_weight)
        if filter_eps is None:
            multiply(*factors, beta=min(start, 1))
        else:
            multiply_filtered(*factors, filter_eps * upstream[part].abs().max())
        if for_bias:
            grad_bias += g.sum(0)
    return losses, (grad_input, grad_weight, grad_bias)


class Loss(torch.autograd.Function):
    """Hidden states, weight, bias, the N rows of q, and which count, to the sum of losses / norm.

    With no norm, to the (N,) losses.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, y, at_y, everywhere, counted, norm, with_grads, *options):
        tensors, q = (input, weight, bias), Q(y, at_y, everywhere)
        ctx.save_for_backward(*tensors, *q, counted, norm)
        ctx.options = options
        share = counted / norm if norm is not None and with_grads else None
        losses, ctx.grads = over_chunks(tensors, q, share, ctx.needs_input_grad, *options)
        return losses if norm is None else losses.masked_fill(~counted, 0).sum() / norm

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        *tensors, y, at_y, everywhere, counted, norm = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None
        if norm is None or grads is None:  # None is left to a second backward
            share = upstream if norm is None else counted / norm
            q = Q(y, at_y, everywhere)
            _, grads = over_chunks(tensors, q, share, ctx.needs_input_grad, *ctx.options)
        made = [grad for grad in grads if grad is not None]
        for grad in made if norm is not None else ():
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
    vocab = len(linear_weight)
    q = distribution(target, weight, vocab, input.dtype, ignore_index, label_smoothing)
    counted, total = target != ignore_index, None
    if reduction != "none":
        total = norm(target, weight, ignore_index, reduction, q.at_y.dtype)
    tensors = (input, linear_weight, linear_bias)
    options = (softcap, z_loss, filter_eps, accum_dtype)
    with_grads = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    value = Loss.apply(*tensors, *q, counted, total, with_grads, *options)
    if reduction == "none":
        value = value.masked_fill(~counted, 0)
    return value.to(result_dtype(input))
