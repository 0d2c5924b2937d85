"""The error budget of value and gradients: twice PyTorch's own error, plus rounding."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.case import Case, Tensors, Wrong, call

# For allclose, relative to the largest element. The budget is tighter, but this one stands alone.
RTOL = {"float64": 1e-10, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}


def judge(loss: impls.Loss, case: Case, tensors: Tensors | None = None, about: str = "") -> None:
    """Raise ``Wrong`` unless value and gradients are within the budget of those of the oracle."""
    case = case.fit(loss)
    tensors = tensors or case.tensors(loss)
    options, upstream = case.options(loss), case.upstream()
    where = f"{case}{about and '; ' + about}"
    native = oracle.evaluate(NATIVE[loss.level], tensors, upstream, **options)
    expected = oracle.expected(loss.level, tensors, upstream, **options)
    scales = natural_scales(tensors, upstream, options)
    # Last: a loss that overwrites its arguments must not spoil what it is held against.
    actual = call(lambda: oracle.evaluate(loss.fn, tensors, upstream, **options), where)
    for name, right in expected.items():
        numbers = actual[name], native[name], right
        compare(*numbers, scales[name], name, case.dtype, case.v, where)
        if loss.level == "logits" and name == "input":
            # The target's entry, near -1, hides all others from a norm, and they do not cancel.
            others = torch.ones_like(right, dtype=torch.bool)
            others[range(case.n), tensors["target"].clamp(0, case.v - 1)] = False
            parts = (tensor * others for tensor in (actual[name], native[name], right))
            what = "input, but for the target's entries"
            compare(*parts, None, what, case.dtype, case.v, where)


def native_cross_entropy(input, target, weight=None, *, softcap=None, z_loss=0.0, **options):
    """PyTorch's own loss, and by PyTorch's own functions the options that it lacks."""
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


NATIVE = {"logits": native_cross_entropy, "linear": native_linear_cross_entropy}


def natural_scales(tensors: Tensors, upstream: Tensor, options: Mapping[str, Any]) -> Tensors:
    """How large value and gradients are before anything cancels: those where all logits are 0.

    p - 1 for a p near 1 is small, and its error is that of a number near 1.
    """
    weight = tensors.get("linear_weight")
    x = tensors["input"].double()
    logits = x if weight is None else x @ weight.double().T
    kept = {name: tensors[name] for name in ("target", "weight") if name in tensors}
    zero = {"input": torch.zeros_like(logits), **kept}
    at_zero = oracle.expected("logits", zero, upstream, **options)
    value, grad = at_zero["value"].abs(), at_zero["input"].abs()
    finite = logits.masked_fill(~logits.isfinite(), 0)
    largest = finite.abs().max() if finite.numel() else finite.sum()
    scales = {"value": value * (1 + largest), "input": grad}
    if weight is not None:
        scales |= {"input": grad @ weight.double().abs(), "linear_weight": grad.T @ x.abs()}
        scales["linear_bias"] = grad.sum(0)
    return scales


def compare(
    actual: Tensor,
    native: Tensor,
    expected: Tensor,
    scale: Tensor | None,
    name: str,
    dtype: str,
    terms: int,
    where: str,
) -> None:
    """Raise ``Wrong`` unless ``actual`` is as near to ``expected`` as the budget asks.

    A sum of n ``terms`` is off by about √n roundings where a CPU without vector instructions adds
    the terms in order, so the band grows with √n. Half precision is summed in float32.
    """
    growth = 1 + terms**0.5 / 32 if dtype in ("float32", "float64") else 1.0
    what = "the value" if name == "value" else f"the gradient of {name}"
    if actual.shape != expected.shape:
        raise Wrong(
            f"{what} has shape {tuple(actual.shape)}, not {tuple(expected.shape)} ({where})"
        )
    if str(actual.dtype) != f"torch.{dtype}":
        raise Wrong(f"{what} is {actual.dtype}, not {dtype} ({where})")
    # One row alone may have less luck than PyTorch's in its rounding than all of them together.
    for norm, distance, bands in (
        ("", oracle.error, 1),
        (" in its worst row", oracle.worst_row, 4),
    ):
        found, theirs = distance(actual, expected, scale), distance(native, expected, scale)
        allowed = oracle.budget(theirs, dtype, bands * growth)
        if not found <= allowed:
            raise Wrong(
                f"{what} is off by {found:.2g}{norm}, of which {allowed:.2g} is allowed "
                f"(PyTorch's own: {theirs:.2g}; {where})"
            )
    largest = max(
        (
            float(t[t.isfinite()].abs().max())
            for t in (expected, scale)
            if t is not None and t.numel()
        ),
        default=0.0,
    )
    atol = RTOL[dtype] * largest
    if not torch.allclose(
        actual.double(), expected.double(), rtol=RTOL[dtype], atol=atol, equal_nan=True
    ):
        raise Wrong(f"{what} is not allclose to the oracle's ({where})")
