"""Properties of the gate: ignored rows, empty batches, and huge or infinite logits."""

from unittest import SkipTest

import torch

import impls
from benchmarks.measure import oracle
from tests.gate.case import (
    Case,
    Tensors,
    call_loss,
    expect,
    expect_close,
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


def check_all_ignored(loss: impls.Loss) -> None:
    """If all rows are ignored, the mean is nan, the sum is 0, and its gradients are 0."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no ignore_index")
    for smoothing in (0.0, 0.1):
        for reduction in reductions(loss):
            case = Case(
                ignored=(0, 1, 2, 3, 4), reduction=reduction, label_smoothing=smoothing
            ).fit(loss)
            assert_value(loss, case, case.tensors(loss), value_without_rows(case))
            if reduction != "mean":
                grads = gradients(loss, case, case.tensors(loss), case.upstream())
                expect(not grads["input"].any(), f"ignored rows have a gradient ({case})")


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
    """Logits of ±1e4, logits of -inf and logits 100 higher neither overflow nor lose precision."""
    judge(loss, Case(scale=30.0))
    if loss.level == "logits":
        for dtype in loss.support.dtypes:
            case = Case(n=4, v=33, dtype=dtype)
            tensors = case.tensors(loss)
            high = {**tensors, "input": tensors["input"].sign() * 1e4}
            judge(loss, case, high, "logits of ±1e4")
            shifted = {**tensors, "input": tensors["input"] + 100}
            judge(loss, case, shifted, "logits 100 higher")
            apart = 1000 * tensors["input"].new_tensor([[0], [1], [-4], [4]])
            each = {**tensors, "input": tensors["input"] + apart}
            judge(loss, case, each, "logits of each row thousands from the logits of other rows")
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


def value_without_rows(case: Case) -> float | list[float]:
    """PyTorch's value where no row counts."""
    return {"mean": float("nan"), "sum": 0.0, "none": [0.0] * case.n}[case.reduction]


def assert_value(
    loss: impls.Loss, case: Case, tensors: Tensors, expected: float | list[float]
) -> None:
    value = call_loss(loss, case, tensors)
    wanted = torch.tensor(expected).double()
    expect(
        torch.equal(value.cpu().double().nan_to_num(nan=-1), wanted.nan_to_num(nan=-1)),
        f"the value is {value.tolist()}, not {expected} ({case})",
    )
