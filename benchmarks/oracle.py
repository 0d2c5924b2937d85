"""The float64 value and gradients that losses are held to, and the distance from them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DIFFERENTIABLE = ("input", "linear_weight", "linear_bias")

# The largest relative error of a gradient that rounding explains. Half precisions round the logits
# too.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-Σ_j q_j log softmax(input)_j in float64, where q_j = w_j ((1 - ε) [j = target] + ε/V)."""
    log_p = input.double().log_softmax(1)  # (N, V)
    vocab = input.shape[1]
    counted = target != ignore_index  # (N,)
    index = target.where(counted, 0)  # (N,)
    w = log_p.new_ones(vocab) if weight is None else weight.double()  # (V,)
    losses = -(1 - label_smoothing) * w[index] * log_p.gather(1, index[:, None]).squeeze(1)
    if label_smoothing > 0:
        losses = losses - label_smoothing / vocab * (w * log_p).sum(1)
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


ORACLES = {"logits": cross_entropy, "linear": linear_cross_entropy}


def evaluate(
    fn: Callable[..., Tensor], tensors: Mapping[str, Tensor], grad: Tensor, **options: Any
) -> dict[str, Tensor]:
    """The value of ``fn(**tensors, **options)``, and its gradients given the upstream ``grad``.

    Keys: "value", and each of "input", "linear_weight", "linear_bias" that is among ``tensors``.
    """
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in tensors.items()
        if name in DIFFERENTIABLE
    }
    value = fn(**{**tensors, **leaves}, **options)
    grads = torch.autograd.grad(value, tuple(leaves.values()), grad.to(value.dtype))
    return {"value": value.detach(), **dict(zip(leaves, grads, strict=True))}


def error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ in float64, over the finite elements of ``expected``.

    Infinite if ``actual`` differs from the others, or in shape.
    """
    actual, expected = actual.double(), expected.double()
    if actual.shape != expected.shape:
        return float("inf")
    odd = ~expected.isfinite()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if not same[odd].all():
        return float("inf")
    distance = torch.linalg.vector_norm((actual - expected)[~odd])
    norm = torch.linalg.vector_norm(expected[~odd])
    if distance == 0:
        return 0.0
    return float((distance / norm).nan_to_num(nan=float("inf")))
