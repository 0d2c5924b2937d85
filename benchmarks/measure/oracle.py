"""Computes a loss's value and gradients in float64, and the error of others relative to them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DIFFERENTIABLE = ("input", "linear_weight", "linear_bias")
CHUNK = 2**26  # elements of a large tensor that are in float64 at once

# What rounding may add to twice the native loss's error, in relative norm: a few units in the last
# place, or one unit in half precision. In float64 the oracle itself is rounded.
BAND = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
# At most so many bands of the native error count in float32 and float64. Products of hidden states
# cost a right loss 1e-5 in float32. PyTorch's loss with label smoothing is off by 2.7e-5.
NATIVE_BANDS = 24


def cross_entropy(
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
    """-Σ_j q_j log softmax(x)_j in float64, where q_j = w_j ((1 - ε) [j = target] + ε/V).

    x is the input or, with a softcap c, c tanh(input / c); z_loss adds z_loss · lse(x)².
    """
    x = input.double() if softcap is None else softcap * torch.tanh(input.double() / softcap)
    log_p = x.log_softmax(1)  # (N, V)
    vocab = input.shape[1]
    counted = target != ignore_index  # (N,)
    index = target.where(counted, 0)  # (N,)
    w = log_p.new_ones(vocab) if weight is None else weight.double()  # (V,)
    losses = -(1 - label_smoothing) * w[index] * log_p.gather(1, index[:, None]).squeeze(1)
    if label_smoothing > 0:
        losses = losses - label_smoothing / vocab * (w * log_p).sum(1)
    if z_loss:
        losses = losses + z_loss * x.logsumexp(1).square()
    losses = losses.where(counted, 0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / w[index].where(counted, 0).sum()


def linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, **options):
    """``cross_entropy`` of input @ linear_weight.T + linear_bias, in float64."""
    bias = None if linear_bias is None else linear_bias.double()
    return cross_entropy(F.linear(input.double(), linear_weight.double(), bias), target, **options)


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    """log softmax(x)_target and, if asked, -Σ_v p_v log p_v of each row, in float64.

    x is (input @ linear_weight.T + linear_bias) / temperature.
    """
    bias = None if linear_bias is None else linear_bias.double()
    x = F.linear(input.double(), linear_weight.double(), bias) / temperature  # (N, V)
    log_p = x.log_softmax(1)
    of_target = log_p.gather(1, target[:, None]).squeeze(1)
    if not entropy:
        return of_target
    p = log_p.exp()
    return of_target, -(p * log_p.masked_fill(p == 0, 0)).sum(1)


ORACLES: dict[str, Callable[..., Any]] = {
    "logits": cross_entropy,
    "linear": linear_cross_entropy,
    "logprobs": token_logprobs,
}


def native_cross_entropy(input, target, weight=None, *, softcap=None, z_loss=0.0, **options):
    """PyTorch's own loss. PyTorch's functions add the options that it lacks."""
    x = input if softcap is None else softcap * torch.tanh(input / softcap)
    value = F.cross_entropy(x, target, weight, **options)
    if not z_loss:
        return value
    counted = target != options.get("ignore_index", -100)
    squares = z_loss * x.logsumexp(1).square() * counted
    if options.get("reduction") == "none":
        return value + squares
    if options.get("reduction") == "sum":
        return value + squares.sum()
    w = counted if weight is None else weight[target * counted] * counted
    return value + squares.sum() / w.sum()


def native_linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, **options):
    return native_cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


# PyTorch's own loss of each level, whose error decides the budget of the others.
NATIVE: dict[str, Callable[..., Tensor]] = {
    "logits": native_cross_entropy,
    "linear": native_linear_cross_entropy,
}


def evaluate(
    fn: Callable[..., Tensor], tensors: Mapping[str, Tensor], grad: Tensor, **options: Any
) -> dict[str, Tensor]:
    """The value of ``fn(**tensors, **options)``, and its gradients given the upstream ``grad``.

    Keys: "value", and those names of ``DIFFERENTIABLE`` that are in ``tensors``.
    """
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in tensors.items()
        if name in DIFFERENTIABLE
    }
    value = fn(**{**tensors, **leaves}, **options)
    grads = torch.autograd.grad(value, tuple(leaves.values()), grad.to(value))
    return {"value": value.detach(), **dict(zip(leaves, grads, strict=True))}


def expected(
    level: str, tensors: Mapping[str, Tensor], grad: Tensor, **options: Any
) -> dict[str, Tensor]:
    """What ``evaluate`` would return without rounding: the same numbers, computed in float64."""
    exact = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    return evaluate(ORACLES[level], exact, grad, **options)


def expected_in_chunks(level: str, arguments: Mapping[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """As ``expected``, with the logits of a chunk of tokens at a time.

    ``arguments`` may have options too. The losses of the rows are reduced here: a mean's
    denominator is the sum of the class weights of the targets that count.
    """
    given = dict(arguments)
    input, target = given.pop("input"), given.pop("target")  # (N, ·), (N,)
    reduction = given.pop("reduction", "mean")
    whole = {name: given.pop(name).double() for name in DIFFERENTIABLE if name in given}
    size = rows(len(whole["linear_weight"]) if whole else input.shape[1])
    divisor: Any = 1
    if reduction == "mean":
        counted = target != given.get("ignore_index", -100)
        weight = given.get("weight")
        shares = counted if weight is None else weight.double()[target.where(counted, 0)] * counted
        divisor = shares.sum()
    upstream = (grad.double() / divisor).expand(len(input))
    losses = []
    grads = {"input": torch.empty_like(input, dtype=torch.float64)}
    chunks = (tensor.split(size) for tensor in (input, target, upstream, grads["input"]))
    for x, y, g, dx in zip(*chunks, strict=True):
        chunk = {**whole, "input": x.double(), "target": y}
        part = evaluate(ORACLES[level], chunk, g, **given, reduction="none")
        losses.append(part["value"])
        dx.copy_(part["input"])
        for name in whole:
            grads[name] = grads[name].add_(part[name]) if name in grads else part[name]
    of_rows = torch.cat(losses)
    return {"value": of_rows if reduction == "none" else of_rows.sum() / divisor, **grads}


def rows(numbers: int) -> int:
    """How many rows of ``numbers`` elements are in float64 at once."""
    return max(1, CHUNK // max(1, numbers))


def error(
    actual: Tensor,
    expected: Tensor,
    scale: Tensor | None = None,
    left_out: Tensor | None = None,
) -> float:
    """‖actual - expected‖ / ‖expected‖ in float64, over the finite elements of ``expected``.

    With ``scale``, of the same shape, the denominator is at least ‖scale‖ / 8: if the terms of a
    sum cancel, the rounding error is in proportion to the terms. ``left_out``, (N,), names an
    element of each row that does not count. The error is infinite if the shapes differ, or if
    ``actual`` differs where ``expected`` is not finite.
    """
    if actual.shape != expected.shape:
        return math.inf
    tensors = [actual, expected, scale if scale is not None else expected]
    tensors = [torch.atleast_1d(tensor) for tensor in tensors]
    tensors += [] if left_out is None else [left_out[:, None]]
    size = rows(expected[0].numel() if expected.dim() > 1 and len(expected) else 1)
    norms = []
    for a, e, s, *y in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        if y:
            a, e, s = (tensor.scatter(1, y[0], 0) for tensor in (a, e, s))
        norms.append(_norms(a, e, s if scale is not None else None, dim=None))
    return float(_relative(*torch.linalg.vector_norm(torch.stack(norms), dim=0)))


def worst_row(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest ``error`` of a row. A norm over all rows hides one wrong row."""
    if actual.shape != expected.shape or actual.dim() < 2 or not len(actual):
        return error(actual, expected, scale)
    norms = _norms(actual, expected, scale, dim=tuple(range(1, actual.dim())))
    return float(_relative(*norms).max())


def _norms(
    actual: Tensor, expected: Tensor, scale: Tensor | None, dim: tuple[int, ...] | None
) -> Tensor:
    """‖actual - expected‖, ‖expected‖ and ‖scale‖, which is 0 without a scale.

    (3,), or (3, N) for norms of rows. The first is infinite if ``actual`` differs where
    ``expected`` is not finite.
    """
    actual, expected = actual.double(), expected.double()
    infinite = ~expected.isfinite()
    differs = False
    if infinite.any():
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        differs = not same[infinite].all()
        actual, expected = actual.masked_fill(infinite, 0), expected.masked_fill(infinite, 0)
    distance = torch.linalg.vector_norm(actual - expected, dim=dim)
    size = torch.linalg.vector_norm(expected, dim=dim)
    least = size * 0 if scale is None else torch.linalg.vector_norm(scale.double(), dim=dim)
    return torch.stack([distance.fill_(math.inf) if differs else distance, size, least])


def _relative(distance: Tensor, size: Tensor, scale: Tensor) -> Tensor:
    # Where expected and actual are both zero, the error is zero, not nan.
    relative = torch.where(distance == 0, 0, distance / torch.maximum(size, scale / 8))
    return relative.nan_to_num(nan=torch.inf, posinf=torch.inf)


def budget(native: float, dtype: str, bands: float = 1) -> float:
    """The error that a loss may have in ``dtype``, if the native loss's error is ``native``.

    In float32 and float64 at most ``NATIVE_BANDS`` bands of the native error count: a loss must be
    precise where the native loss is not. In half precision the whole native error counts, because a
    small gradient loses its digits in any loss.
    """
    share = 2 * native if math.isfinite(native) else 0.0
    if dtype in ("float32", "float64"):
        share = min(share, NATIVE_BANDS * BAND[dtype])
    return share + bands * BAND[dtype]
