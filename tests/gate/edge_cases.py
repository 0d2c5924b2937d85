"""Properties of the gate: ignored rows, empty batches, and huge or infinite logits."""

from collections.abc import Iterator
from dataclasses import replace
from unittest import SkipTest

import torch

import impls
from benchmarks.measure import oracle
from impls.loss import INTERPRETED
from tests.gate.case import (
    Case,
    Tensors,
    backward,
    call,
    call_loss,
    expect,
    expect_close,
    forward,
    gradients,
    reductions,
    tolerance,
)
from tests.gate.values import judge


def check_ignored(loss: impls.Loss) -> None:
    """Ignored rows do not count, at any position and for any ignore_index."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no ignore_index")
    for ignored in ((0,), (4,), (0, 1, 2), (1, 2, 3, 4)):
        for reduction in reductions(loss):
            judge(loss, Case(ignored=ignored, reduction=reduction))
    for ignore_index in (-1, 0, 5, 10, 255):
        judge(loss, Case(ignored=(1, 2), ignore_index=ignore_index))
        judge(loss, Case(ignored=(0,), ignore_index=ignore_index, weighted=True))
        judge(loss, Case(ignored=(3,), ignore_index=ignore_index, label_smoothing=0.1))
    case = Case(ignored=(0, 3), reduction="none").fit(loss)
    grad = gradients(loss, case, case.tensors(loss), case.upstream())["input"]
    expect(not grad[[0, 3]].any(), f"an ignored row has a gradient ({case})")
    expect(grad[[1, 2, 4]].any(1).all(), f"a row that is not ignored has no gradient ({case})")


def check_ignored_runs(loss: impls.Loss) -> None:
    """Whole chunks of ignored rows change nothing, as in training on answers without prompts."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no ignore_index")
    runs = ((0, 64), (192, 256)) if INTERPRETED else ((0, 1024), (1280, 1536))
    case = Case(n=runs[-1][1] + 70, v=7, d=3).fit(loss)
    tensors = case.tensors(loss)
    for start, stop in runs:
        tensors["target"][start:stop] = case.ignore_index
    judge(loss, case, tensors, " and ".join(f"rows {a} to {b - 1} ignored" for a, b in runs))


def check_ignored_not_finite(loss: impls.Loss) -> None:
    """Logits of nan or inf in an ignored row change neither the value nor the other gradients."""
    # In the ignored row PyTorch's own gradient is nan on a CPU, and so is that of linear_weight.
    if "ignore_index" not in loss.options:
        raise SkipTest("no ignore_index")
    for reduction, number in zip(reductions(loss), ("nan", "inf", "-inf"), strict=False):
        case = Case(ignored=(1,), reduction=reduction).fit(loss)
        tensors = case.tensors(loss)
        expected = oracle.expected(loss.level, tensors, case.upstream(), **case.options(loss))
        tensors["input"][1] = float(number)
        expect_unaffected(
            loss, case, tensors, expected, [0, 2, 3, 4], f"row 1, ignored, of {number}"
        )


def check_rows_apart(loss: impls.Loss) -> None:
    """The value and gradient of a row depend on no other row, not on a row of nan either."""
    # If D or V is odd, torch's own product in bfloat16 spreads the nan to another row on some CPUs.
    case = Case(n=600, v=12, d=8, reduction="none").fit(loss)
    if case.reduction != "none":
        raise SkipTest("no reduction of none")
    tensors = case.tensors(loss)
    expected = oracle.expected(loss.level, tensors, case.upstream(), **case.options(loss))
    rows = [row for row in range(case.n) if row != 301]
    tensors["input"][301] = float("nan")
    expect_unaffected(loss, case, tensors, expected, rows, "row 301 of nan")
    few = [0, 299, 599]
    alone = replace(case, n=len(few))
    part = {**tensors, "input": tensors["input"][few], "target": tensors["target"][few]}
    actual = gradients(loss, alone, part, case.upstream()[few])["input"]
    what = "the gradient of 3 rows without the 597 others"
    expect_close(actual, expected["input"][few], tolerance(loss, 1e-5), what, str(alone))


def check_all_ignored(loss: impls.Loss) -> None:
    """If all rows are ignored, the mean is nan and the sum is 0. All gradients are 0."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no ignore_index")
    for smoothing in (0.0, 0.1):
        for reduction in reductions(loss):
            case = Case(
                ignored=(0, 1, 2, 3, 4), reduction=reduction, label_smoothing=smoothing
            ).fit(loss)
            assert_value(loss, case, case.tensors(loss), value_without_rows(case))
            grads = gradients(loss, case, case.tensors(loss), case.upstream())
            for name, grad in grads.items():
                expect(not grad.any(), f"the gradient of {name} is not zero ({case})")


def check_empty(loss: impls.Loss) -> None:
    """In an empty batch, the mean is nan, the sum is 0, and its gradients are 0 in their shapes."""
    for reduction in reductions(loss):
        case = Case(n=0, reduction=reduction).fit(loss)
        tensors = case.tensors(loss)
        assert_value(loss, case, tensors, value_without_rows(case))
        if reduction != "mean":
            for name, grad in gradients(loss, case, tensors, case.upstream()).items():
                expect(
                    grad.shape == tensors[name].shape and not grad.any(),
                    f"the gradient of {name} is not zero in the shape of {name} ({case})",
                )


def check_extreme_logits(loss: impls.Loss) -> None:
    """Huge logits and logits of -inf overflow nowhere. log-sum-exp may be rounded once."""
    for case, tensors, about in calls_with_large_logits(loss):
        judge(loss, case, tensors, about)
    if loss.level == "logits":
        for columns in (slice(0, 3), slice(20, 33), slice(0, 31)):
            case = Case(n=4, v=33, reduction="none").fit(loss)
            tensors = case.tensors(loss)
            tensors["target"] = tensors["target"].new_tensor([31, 32, 31, 32])
            mask = torch.zeros(33, dtype=torch.bool, device=tensors["input"].device)
            mask[columns] = True
            mask[31:] = False
            tensors["input"] = tensors["input"].masked_fill(mask, float("-inf"))
            judge(loss, case, tensors, "some logits -inf")
        case = Case(n=2, v=9000).fit(loss)
        tensors = case.tensors(loss)
        tensors["target"] = tensors["target"].new_tensor([8999, 8998])
        tensors["input"][:, :8990] = float("-inf")
        judge(loss, case, tensors, "the first 8990 logits -inf")
    elif "linear_bias" in loss.options:
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        judge(loss, case, {**tensors, "linear_bias": tensors["linear_bias"] + 100}, "bias + 100")
        tensors["linear_bias"][:5] = float("-inf")
        tensors["target"] = tensors["target"] % 6 + 5
        value = call_loss(loss, case, tensors, "a bias of -inf")
        expected = oracle.linear_cross_entropy(**tensors, **case.options(loss))
        what = "the value where a bias is -inf"
        expect_close(value, expected, tolerance(loss, 1e-5), what, str(case))


def check_many_chunks(loss: impls.Loss) -> None:
    """In half precision the weight's gradient does not lose digits with the number of tokens."""
    if loss.level != "linear" or "bfloat16" not in loss.support.dtypes:
        raise SkipTest("no linear_weight in bfloat16")
    if INTERPRETED:
        raise SkipTest("the interpreter takes minutes")
    repeats = 1024
    few = Case(n=32, v=61, d=8, dtype="bfloat16", reduction="sum").fit(loss)
    case, tensors = replace(few, n=32 * repeats), few.tensors(loss)
    many = {
        "input": tensors["input"].repeat(repeats, 1),
        "target": tensors["target"].repeat(repeats),
    }
    upstream = tensors["input"].new_tensor(1 / case.n if few.reduction == "sum" else 1.0)
    grads = gradients(loss, case, {**tensors, **many}, upstream)
    exact = oracle.expected(loss.level, tensors, upstream.double(), **few.options(loss))
    factor = repeats if few.reduction == "sum" else 1
    what = "the gradient of linear_weight"
    where = f"{case}; the same 32 rows {repeats} times"
    expect_close(grads["linear_weight"], factor * exact["linear_weight"], 1.2e-2, what, where)


def calls_with_large_logits(loss: impls.Loss) -> Iterator[tuple[Case, Tensors, str]]:
    """Calls in which the log-sum-exp is far from 0, each with its description."""
    scaled = Case(scale=30.0).fit(loss)
    yield scaled, scaled.tensors(loss), ""
    if loss.level == "linear":
        return
    for dtype in loss.support.dtypes:
        case = Case(n=4, v=33, dtype=dtype).fit(loss)
        tensors = case.tensors(loss)
        x = tensors["input"]
        apart = 1000 * x.new_tensor([[0], [1], [-4], [4]])
        for about, logits in {
            "logits of ±1e4": x.sign() * 1e4,
            "logits 100 higher": x + 100,
            "logits of each row thousands from the logits of other rows": x + apart,
        }.items():
            yield case, {**tensors, "input": logits}, about
        if dtype in ("float32", "float64"):
            yield case, {**tensors, "input": 16 * x + 1e8}, "logits 1e8 higher"


def value_without_rows(case: Case) -> float | list[float]:
    """PyTorch's value where no row counts."""
    return {"mean": float("nan"), "sum": 0.0, "none": [0.0] * case.n}[case.reduction]


def expect_unaffected(
    loss: impls.Loss, case: Case, tensors: Tensors, expected: Tensors, rows: list[int], about: str
) -> None:
    """Raise ``Wrong`` unless the value and the input's gradient in ``rows`` are as ``expected``."""
    where = f"{case}; {about}"
    value, leaves = forward(loss, case, tensors)
    grad = call(lambda: backward(value, leaves, case.upstream()), where)[0]
    actual, exact = (value, expected["value"])
    if case.reduction == "none":
        actual, exact = value[rows], exact[rows]
    expect_close(actual.detach(), exact, tolerance(loss, 1e-5), "the value", where)
    what = "the gradient of input in the other rows"
    expect_close(grad[rows], expected["input"][rows], tolerance(loss, 1e-5), what, where)


def assert_value(
    loss: impls.Loss, case: Case, tensors: Tensors, expected: float | list[float]
) -> None:
    value = call_loss(loss, case, tensors)
    wanted = torch.tensor(expected).double()
    expect(
        torch.equal(value.cpu().double().nan_to_num(nan=-1), wanted.nan_to_num(nan=-1)),
        f"the value is {value.tolist()}, not {expected} ({case})",
    )
