"""Properties of the gate: what arguments a loss takes, refuses and leaves alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from benchmarks.ranks.pool import RankFailed
from tests.gate.case import (
    Case,
    Tensors,
    Wrong,
    describe,
    expect,
    expect_close,
    gradients,
    tolerance,
)
from tests.gate.values import judge


def check_strides(loss: impls.Loss) -> None:
    """Arguments need not be contiguous: they may be transposed, sliced, expanded or offset."""
    case = Case(n=6, v=12, d=8, reduction="none").fit(loss)
    for name in ("input", "linear_weight"):
        tensors = case.tensors(loss)
        if name not in tensors:
            continue
        tensor = tensors[name]
        transposed = tensor.T.contiguous().T
        for about, view in {
            "transposed": transposed,
            "every second column of a wider tensor": tensor.repeat_interleave(2, 1)[:, ::2],
            "every second row of a longer tensor": tensor.repeat_interleave(2, 0)[::2],
            "part of a larger tensor": torch.nn.functional.pad(tensor, (3, 2, 1, 4))[1:-4, 3:-2],
            "one column expanded": tensor[:, :1].expand_as(tensor),
        }.items():
            judge(loss, case, {**tensors, name: view}, f"{name} {about}")
        # Forward may make the gradient of a mean in this layout, for backward to multiply.
        mean = replace(case, reduction="mean").fit(loss)
        judge(loss, mean, {**tensors, name: transposed}, f"{name} transposed")
    tensors = case.tensors(loss)
    strided = tensors["target"].repeat_interleave(3)[::3]
    judge(loss, case, {**tensors, "target": strided}, "target every third of a longer tensor")
    expanded = tensors["target"][:1].expand(6)
    judge(loss, case, {**tensors, "target": expanded}, "target expanded")
    random = case.upstream().to(tensors["input"])
    for about, upstream in {
        "every third number of a longer": random.repeat_interleave(3)[::3]
        if random.dim()
        else random,
        "an expanded": random.new_tensor(0.5).expand_as(random),
    }.items():
        expected = oracle.expected(loss.level, tensors, upstream, **case.options(loss))
        for name, grad in gradients(loss, case, tensors, upstream).items():
            what = f"the gradient of {name} for {about} upstream gradient"
            expect_close(grad, expected[name], tolerance(loss, 1e-5), what, str(case))


def check_out_of_range(loss: impls.Loss) -> None:
    """On the CPU, a target outside [0, V) that is not ignored raises, or its loss is nan."""
    for case, tensors, about in calls_out_of_range(loss):
        value = value_or_refusal(loss, case, tensors)
        refused = value is None or value.isnan().any()
        expect(refused, f"for {about} the loss returns {value} ({case})")


def check_mismatches(loss: impls.Loss) -> None:
    """Shapes that do not match raise. Dtypes that do not match raise, or the result is right."""
    for case, tensors, about, *_ in calls_that_mismatch(loss):
        value = value_or_refusal(loss, case, tensors)
        if value is None:
            continue
        expect(about.endswith(MAY_CONVERT), f"for {about} the loss returns {value} ({case})")
        converted = {**tensors, "target": tensors["target"].long()}
        exact = oracle.ORACLES[loss.level](**converted, **case.options(loss))
        expect_close(value, exact, tolerance(loss, 1e-5), f"the value for {about}", str(case))


def check_arguments_untouched(loss: impls.Loss) -> None:
    """Forward and backward overwrite no argument, except the input if ``Support`` declares it."""
    case = Case(weighted=True, ignored=(1,), label_smoothing=0.1).fit(loss)
    tensors = case.tensors(loss)
    own = ("input",) if loss.support.overwrites_input else ()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    upstream = case.upstream().to(tensors["input"])  # backward gets this tensor itself
    given = upstream.clone()
    gradients(loss, case, tensors, upstream)
    for name in tensors.keys() - own:
        expect(torch.equal(tensors[name], before[name]), f"{name} is overwritten ({case})")
    expect(torch.equal(upstream, given), f"the upstream gradient is overwritten ({case})")


# Bad calls: a float32 target or a float64 weight may be converted. All others must be refused.
MAY_CONVERT = (" in float32", " in float64")


def value_or_refusal(loss: impls.Loss, case: Case, tensors: Tensors) -> Tensor | None:
    """The value of a bad call, or None if the loss raises an error of any type.

    An error that leaves CUDA or the ranks of a sharded loss broken is no refusal.
    """
    try:
        return loss.fn(**tensors, **case.options(loss)).detach()
    except RankFailed as error:
        raise Wrong(f"not all ranks refuse the call: {error} ({case})") from error
    except Exception as error:
        expect("CUDA error" not in str(error), f"the loss raises {describe(error)} ({case})")
        return None


def calls_out_of_range(loss: impls.Loss) -> Iterator[tuple[Case, Tensors, str]]:
    """Calls with a target outside [0, V), each with its description."""
    if loss.support.devices[0] != "cpu":
        raise SkipTest("on CUDA an assertion in the kernel ends the process, as in PyTorch")
    for value in (11, 12, 1000, -1, -7, -101):
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        tensors["target"][2] = value
        yield case, tensors, f"a target of {value}"


def calls_that_mismatch(loss: impls.Loss) -> Iterator[tuple[Any, ...]]:
    """Calls whose arguments do not go together, each with its description and what is not equal."""
    case = Case(weighted=True).fit(loss)
    tensors = case.tensors(loss)
    calls = [
        ("target", tensors["target"][:3], "a target of 3 rows", "5", "3"),
        ("target", tensors["target"].float(), "a target in float32", "float32", "int64"),
    ]
    if "weight" in tensors:
        weight = tensors["weight"]
        calls += [
            ("weight", weight[:4], "4 class weights", "11", "4"),
            ("weight", weight.double(), "class weights in float64", case.dtype, "float64"),
        ]
    if "linear_weight" in tensors:
        weight = tensors["linear_weight"]
        calls += [
            ("linear_weight", weight[:, :4], "linear_weight with D=4", "7", "4"),
            ("linear_weight", weight.double(), "linear_weight in float64", case.dtype, "float64"),
        ]
    for name, other, about, *words in calls:
        yield case, {**tensors, name: other}, about, *words
    if "reduction" in loss.options:
        average = replace(case, reduction="average")
        yield average, tensors, "an unknown reduction", "average"
