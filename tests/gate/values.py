"""Properties of the gate: value and gradients are right for all options, dtypes and sizes.

A property is tried on cases from small to large, so the first case that fails is the smallest. An
error has a budget: twice the error of PyTorch's own loss at the same precision, plus the rounding
of the dtype and of a log-sum-exp that is kept in one number.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import hypothesis
import hypothesis.strategies as st
import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from impls.loss import INTERPRETED
from tests.gate.case import Case, Tensors, Wrong, call, reductions

# For allclose, relative to the largest element. The budget is tighter. This tolerance does not
# depend on PyTorch's own error.
RTOL = {"float64": 1e-10, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
HALVES = ("float16", "bfloat16")


def check_options(loss: impls.Loss) -> None:
    """Value and gradients are right with each reduction, smoothing, class weights, ignored rows."""
    for label_smoothing, weighted, reduction in itertools.product(
        (0.0, 0.1), (False, True), reductions(loss)
    ):
        judge(
            loss,
            Case(
                reduction=reduction,
                label_smoothing=label_smoothing,
                weighted=weighted,
                ignored=(1, 3),
            ),
        )


def check_softcap_and_z_loss(loss: impls.Loss) -> None:
    """softcap makes the logits c tanh(x/c). z_loss adds z lse² to the loss of each row."""
    offered = [name for name in ("softcap", "z_loss") if name in loss.options]
    if not offered:
        raise SkipTest("neither softcap nor z_loss")
    for reduction, weighted in itertools.product(reductions(loss), (False, True)):
        case = Case(reduction=reduction, weighted=weighted, ignored=(1,), scale=3.0).fit(loss)
        for name, value in (("softcap", 2.0), ("z_loss", 0.05)):
            if name in offered:
                judge(loss, replace(case, **{name: value}))
    both = Case(softcap=5.0, z_loss=1e-3, label_smoothing=0.1, n=6, v=37, scale=10.0)
    for dtype in loss.support.dtypes:
        judge(loss, replace(both, dtype=dtype))


def check_dtypes(loss: impls.Loss) -> None:
    """In each dtype, value and gradients are as precise as the dtype allows."""
    for dtype in loss.support.dtypes:
        judge(loss, Case(dtype=dtype, n=6, v=37))
        judge(loss, Case(dtype=dtype, n=6, v=37, reduction="none", weighted=True, ignored=(2,)))
        judge(loss, Case(dtype=dtype, n=6, v=37, label_smoothing=0.2, scale=4.0))
        judge(loss, Case(dtype=dtype, n=100 if INTERPRETED else 2000, v=37, reduction="sum"))
        judge(loss, Case(dtype=dtype, n=4, v=5003))
        if not INTERPRETED:
            judge(loss, Case(dtype=dtype, n=600, v=5003))


def check_sizes(loss: impls.Loss) -> None:
    """The loss is right for any number of rows and classes: 1, primes, near powers of two."""
    for n, v in itertools.product((1, 2), (1, 2, 3)):
        judge(loss, Case(n=n, v=v))
    for v in (31, 32, 33, 127, 128, 129, 255, 256, 257, 1000, 1021, 1024):
        judge(loss, Case(n=3, v=v))
    judge(loss, Case(n=37, v=67))
    if INTERPRETED:  # the interpreter takes minutes for larger sizes
        return
    for v in (4095, 4096, 4097):
        judge(loss, Case(n=3, v=v))
    for v in (8191, 8192, 8193, 50257, 65535, 65536, 65537, 70001):
        judge(loss, Case(n=2, v=v))
    judge(loss, Case(n=1037, v=67))
    judge(loss, Case(n=33, v=9001, label_smoothing=0.1, weighted=True, ignored=(0, 5)))


def check_first_and_last(loss: impls.Loss) -> None:
    """The loss is right where the target is the first class or the last class."""
    for v in (2, 11, 4099):
        case = Case(n=4, v=v, reduction="none").fit(loss)
        tensors = case.tensors(loss)
        tensors["target"] = tensors["target"].new_tensor([0, v - 1, v - 1, 0])
        judge(loss, case, tensors, "targets 0 and V-1")


def check_random(loss: impls.Loss) -> None:
    """The loss is right for random calls. The call shown is the smallest that hypothesis found."""
    layouts = ["contiguous", "transposed", "sliced", "expanded"]
    if "strides" in loss.support.deviations:
        layouts = layouts[:1]

    @hypothesis.settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,  # several would come without their messages
    )
    @hypothesis.given(
        case=st.builds(
            Case,
            n=st.integers(1, 12),
            v=st.integers(2, 300),
            reduction=st.sampled_from(reductions(loss)),
            label_smoothing=st.sampled_from([0.0, 0.1]),
            weighted=st.booleans(),
            ignore_index=st.sampled_from([-100, -1, 0, 3]),
            scale=st.sampled_from([1.0, 0.01, 20.0]),
            seed=st.integers(0, 1000),
        ),
        ignored=st.sets(st.integers(0, 11)),
        layout=st.sampled_from(layouts),
    )
    def judge_drawn(case: Case, ignored: set[int], layout: str) -> None:
        rows = tuple(sorted(row for row in ignored if row < case.n))
        case = replace(case, ignored=rows).fit(loss)
        tensors = case.tensors(loss)
        x = tensors["input"]
        tensors["input"] = {
            "contiguous": x,
            "transposed": x.T.contiguous().T,
            "sliced": x.repeat_interleave(3, 1)[:, 1::3],
            "expanded": x[:1].expand_as(x),
        }[layout]
        if (tensors["target"] == case.ignore_index).all():
            return  # the property all_ignored is about it
        judge(loss, case, tensors, f"input {layout}")

    judge_drawn()


def judge(
    loss: impls.Loss,
    case: Case,
    tensors: Tensors | None = None,
    about: str = "",
    is_strict: bool = False,
) -> None:
    """Raise ``Wrong`` unless value and gradients are within the budget of those of the oracle.

    ``is_strict`` leaves out of the budget what a log-sum-exp in one number adds.
    """
    case = case.fit(loss)
    tensors = tensors or case.tensors(loss)
    options, upstream = case.options(loss), case.upstream()
    where = f"{case}{about and '; ' + about}"
    native = oracle.evaluate(oracle.NATIVE[loss.level], tensors, upstream, **options)
    expected = oracle.expected(loss.level, tensors, upstream, **options)
    scales = natural_scales(tensors, upstream, options)
    rounding = 0.0 if is_strict else lse_rounding(tensors, case)
    # The loss comes last: if it overwrites its arguments, the numbers above stay right.
    actual = call(lambda: oracle.evaluate(loss.fn, tensors, upstream, **options), where)
    for name, exact in expected.items():
        numbers = actual[name], native[name], exact
        compare(*numbers, scales[name], name, case.dtype, case.v, rounding, where)
        if loss.level == "logits" and name == "input":
            # The target's entry is near -1. In a norm it hides the errors of all other entries.
            others = torch.ones_like(exact, dtype=torch.bool)
            others[range(case.n), tensors["target"].clamp(0, case.v - 1)] = False
            parts = (tensor * others for tensor in (actual[name], native[name], exact))
            what = "input without the entries of the targets"
            compare(*parts, None, what, case.dtype, case.v, rounding, where)


def logits_of(tensors: Tensors) -> Tensor:
    """The logits (N, V) in float64, without a softcap."""
    x, weight, bias = (
        None if name not in tensors else tensors[name].double()
        for name in ("input", "linear_weight", "linear_bias")
    )
    assert x is not None
    return x if weight is None else torch.nn.functional.linear(x, weight, bias)


def lse_rounding(tensors: Tensors, case: Case) -> float:
    """The relative error of softmax(x) that a log-sum-exp in one number adds: exp(ε |lse|) - 1.

    Most fused kernels keep one number for each row, in the dtype that sums are taken in. Its
    rounding is an error of at most ε/2 |lse|, and as much again if it is kept in base 2.
    """
    x = logits_of(tensors)
    x = x if case.softcap is None else case.softcap * torch.tanh(x / case.softcap)
    lse = x.logsumexp(1).abs()
    largest = float(lse[lse.isfinite()].max()) if lse.isfinite().any() else 0.0
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    return math.expm1(min(100.0, torch.finfo(wide).eps * largest))


def compare(
    actual: Tensor,
    native: Tensor,
    expected: Tensor,
    scale: Tensor | None,
    name: str,
    dtype: str,
    terms: int,
    rounding: float,
    where: str,
) -> None:
    """Raise ``Wrong`` unless the error of ``actual`` is within the budget, plus ``rounding``.

    A CPU without vector instructions adds the n ``terms`` of a sum in order. The rounding errors
    then add up to about √n of one error, so the band grows with √n. Half precision is summed in
    float32, so its band does not grow.
    """
    growth = 1 + terms**0.5 / 32 if dtype in ("float32", "float64") else 1.0
    what = "the value" if name == "value" else f"the gradient of {name}"
    if actual.shape != expected.shape:
        raise Wrong(
            f"{what} has shape {tuple(actual.shape)}, not {tuple(expected.shape)} ({where})"
        )
    # Many fused losses return a value in float32. The property value_dtype is about it.
    more_precise = name == "value" and actual.dtype == torch.float32 and dtype in HALVES
    if str(actual.dtype) != f"torch.{dtype}" and not more_precise:
        raise Wrong(f"{what} is {actual.dtype}, not {dtype} ({where})")
    # The rounding error of a single row varies more than the rounding error of all rows.
    for part, distance, bands in (
        ("", oracle.error, 1),
        (" in the worst row", oracle.worst_row, 4),
    ):
        error, native_error = (distance(t, expected, scale) for t in (actual, native))
        allowed = oracle.budget(native_error, dtype, bands * growth) + bands * rounding
        if not error <= allowed:
            raise Wrong(
                f"{what} is wrong{part}: relative error {error:.2g}, allowed {allowed:.2g}, "
                f"PyTorch's own {native_error:.2g} ({where})"
            )
    largest = max(
        (
            float(t[t.isfinite()].abs().max())
            for t in (expected, scale)
            if t is not None and t.numel()
        ),
        default=0.0,
    )
    rtol = RTOL[dtype] + rounding
    atol = rtol * largest
    if not torch.allclose(actual.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True):
        raise Wrong(
            f"{what} has a wrong element: allclose to float64 fails with rtol {rtol:.2g}, "
            f"atol {atol:.2g} ({where})"
        )


def natural_scales(tensors: Tensors, upstream: Tensor, options: Mapping[str, Any]) -> Tensors:
    """The usual size of the value and of each gradient, computed as if all logits were 0.

    If p is near 1, p - 1 is small, but its rounding error is that of a number near 1. So an error
    is compared with this size, not with p - 1.
    """
    weight = tensors.get("linear_weight")
    x, logits = tensors["input"].double(), logits_of(tensors)
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
