"""Properties of the gate: what arguments a loss takes, refuses and leaves alone."""

from dataclasses import replace
from unittest import SkipTest

import torch

import impls
from benchmarks.measure import oracle
from tests.gate.case import (
    Case,
    Tensors,
    Wrong,
    call,
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
        for about, view in {
            "transposed": tensor.T.contiguous().T,
            "every second column of a wider tensor": tensor.repeat_interleave(2, 1)[:, ::2],
            "every second row of a longer tensor": tensor.repeat_interleave(2, 0)[::2],
            "part of a larger tensor": torch.nn.functional.pad(tensor, (3, 2, 1, 4))[1:-4, 3:-2],
            "one column expanded": tensor[:, :1].expand_as(tensor),
        }.items():
            judge(loss, case, {**tensors, name: view}, f"{name} {about}")
    tensors = case.tensors(loss)
    strided = tensors["target"].repeat_interleave(3)[::3]
    judge(loss, case, {**tensors, "target": strided}, "target every third of a longer tensor")
    expanded = tensors["target"][:1].expand(6)
    judge(loss, case, {**tensors, "target": expanded}, "target expanded")
    upstream = tensors["input"].new_tensor(0.5).expand_as(case.upstream())
    expected = oracle.expected(loss.level, tensors, upstream, **case.options(loss))
    for name, grad in gradients(loss, case, tensors, upstream).items():
        what = f"the gradient of {name} for an expanded upstream gradient"
        expect_close(grad, expected[name], tolerance(loss, 1e-5), what, str(case))


def check_out_of_range(loss: impls.Loss) -> None:
    """On the CPU, a target outside [0, V) that is not ignored raises IndexError with its value."""
    if loss.support.devices[0] != "cpu":
        raise SkipTest("on CUDA an assertion in the kernel ends the process, as in PyTorch")
    for value in (11, 12, 1000, -1, -7, -101):
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        tensors["target"][2] = value
        assert_raises(IndexError, loss, case, tensors, f"a target of {value}", str(value))


def check_mismatches(loss: impls.Loss) -> None:
    """Shapes or dtypes that do not match raise ValueError. The message names both."""
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
        assert_raises(ValueError, loss, case, {**tensors, name: other}, about, *words)
    if "reduction" in loss.options:
        average = replace(case, reduction="average")
        assert_raises(ValueError, loss, average, tensors, "an unknown reduction", "average")


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


def check_positional(loss: impls.Loss) -> None:
    """The loss replaces PyTorch's: the same names and defaults, tensors by position."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    order = {"logits": ("input", "target"), "linear": ("input", "linear_weight", "target")}
    value = call(lambda: loss.fn(*(tensors[name] for name in order[loss.level])), "tensors alone")
    options = {name: tensors[name] for name in order[loss.level]}
    expected = oracle.ORACLES[loss.level](**options)
    what = "the value of a call with tensors alone, which is the mean"
    expect_close(value, expected, tolerance(loss, 1e-5), what, str(case))


def assert_raises(
    kind: type[Exception], loss: impls.Loss, case: Case, tensors: Tensors, about: str, *words: str
) -> None:
    """Raise ``Wrong`` unless the call raises ``kind`` with all ``words`` in its message."""
    where = f"{case}; {about}"
    try:
        value = loss.fn(**tensors, **case.options(loss))
    except kind as error:
        missing = " and ".join(word for word in words if word not in str(error))
        expect(not missing, f"the error does not name {missing}: {describe(error)} ({where})")
    except Exception as error:
        message = f"the loss raises {describe(error)} ({where}), not {kind.__name__}"
        raise Wrong(message) from error
    else:
        wanted = f"{kind.__name__} that names {' and '.join(words)}"
        raise Wrong(f"the loss returns {value.tolist()}, not {wanted} ({where})")
