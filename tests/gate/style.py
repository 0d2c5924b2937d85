"""Properties of the gate: house style. A right loss of other people need not have them."""

from unittest import SkipTest

import torch

import impls
from benchmarks.measure import oracle
from tests.gate.calls import calls_out_of_range, calls_that_mismatch
from tests.gate.case import (
    Case,
    Tensors,
    Wrong,
    call,
    describe,
    expect,
    expect_close,
    tolerance,
)
from tests.gate.edge_cases import calls_with_large_logits
from tests.gate.values import HALVES, judge


def check_index_error(loss: impls.Loss) -> None:
    """On the CPU, a target outside [0, V) that is not ignored raises IndexError with its value."""
    for case, tensors, about in calls_out_of_range(loss):
        assert_raises(IndexError, loss, case, tensors, about, about.rpartition(" ")[2])


def check_value_error(loss: impls.Loss) -> None:
    """Shapes or dtypes that do not match raise ValueError. The message names both."""
    for case, tensors, about, *words in calls_that_mismatch(loss):
        assert_raises(ValueError, loss, case, tensors, about, *words)


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


def check_value_dtype(loss: impls.Loss) -> None:
    """The value has the dtype of the input, as PyTorch's."""
    halves = [dtype for dtype in HALVES if dtype in loss.support.dtypes]
    if not halves:
        raise SkipTest("no bfloat16 or float16")
    for dtype in halves:
        case = Case(dtype=dtype).fit(loss)
        value = call(lambda: loss.fn(**case.tensors(loss), **case.options(loss)), str(case))  # noqa: B023  called at once
        expect(str(value.dtype) == f"torch.{dtype}", f"the value is {value.dtype} ({case})")


def check_precise_lse(loss: impls.Loss) -> None:
    """Huge logits cost the gradient no digit, as log-sum-exp is kept in two numbers."""
    for case, tensors, about in calls_with_large_logits(loss):
        judge(loss, case, tensors, about, is_strict=True)


def check_confident(loss: impls.Loss) -> None:
    """In half precision the gradient of a target, p - 1, keeps its digits where p is near 1."""
    # PyTorch's own loss keeps none on a CPU: it rounds p to half precision first.
    halves = [dtype for dtype in HALVES if dtype in loss.support.dtypes]
    if loss.level != "logits" or not halves:
        raise SkipTest("no logits in half precision")
    for dtype in halves:
        case = Case(n=6, v=37, dtype=dtype, reduction="sum").fit(loss)
        tensors = case.tensors(loss)
        at_target = torch.arange(case.n), tensors["target"]
        tensors["input"][at_target] = 10.0  # p - 1 is about -3e-3
        native, exact, actual = (
            oracle.evaluate(fn, tensors, case.upstream(), **case.options(loss))["input"][at_target]
            for fn in (oracle.NATIVE[loss.level], oracle.ORACLES[loss.level], loss.fn)
        )
        what = f"p - 1 where p is near 1 (PyTorch's own error {oracle.error(native, exact):.2g})"
        expect_close(actual, exact, 2 * oracle.BAND[dtype], what, str(case))


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
