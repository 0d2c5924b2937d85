"""Properties of the gate: what arguments a loss takes, refuses and leaves alone."""

from dataclasses import replace
from unittest import SkipTest

import torch

import impls
from benchmarks.measure import oracle
from tests.gate.case import Case, Tensors, Wrong, call, expect, gradients, tolerance
from tests.gate.values import judge


def check_strides(loss: impls.Loss) -> None:
    """Arguments need not be contiguous: transposed, sliced, expanded, offset."""
    case = Case(n=6, v=12, d=8, reduction="none").fit(loss)
    for name in ("input", "linear_weight"):
        tensors = case.tensors(loss)
        if name not in tensors:
            continue
        tensor = tensors[name]
        for about, view in {
            "transposed": tensor.T.contiguous().T,
            "every second column of a wider one": tensor.repeat_interleave(2, 1)[:, ::2],
            "every second row of a longer one": tensor.repeat_interleave(2, 0)[::2],
            "part of a larger one": torch.nn.functional.pad(tensor, (3, 2, 1, 4))[1:-4, 3:-2],
            "one column expanded": tensor[:, :1].expand_as(tensor),
        }.items():
            judge(loss, case, {**tensors, name: view}, f"{name} {about}")
    tensors = case.tensors(loss)
    strided = tensors["target"].repeat_interleave(3)[::3]
    judge(loss, case, {**tensors, "target": strided}, "target every third of a longer one")
    expanded = tensors["target"][:1].expand(6)
    judge(loss, case, {**tensors, "target": expanded}, "target expanded")
    upstream = tensors["input"].new_tensor(0.5).expand_as(case.upstream())
    right = oracle.expected(loss.level, tensors, upstream, **case.options(loss))
    for name, grad in gradients(loss, case, tensors, upstream).items():
        expect(
            oracle.error(grad, right[name]) < tolerance(loss, 1e-5),
            f"the gradient of {name} is wrong for an expanded upstream gradient ({case})",
        )


def check_out_of_range(loss: impls.Loss) -> None:
    """A target outside [0, V) that is not ignored raises IndexError, naming it, on the CPU."""
    if loss.support.devices[0] != "cpu":
        raise SkipTest("on CUDA, as in torch, the kernel asserts, and takes the process with it")
    for value in (11, 12, 1000, -1, -7, -101):
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        tensors["target"][2] = value
        raises(IndexError, loss, case, tensors, str(value))


def check_mismatches(loss: impls.Loss) -> None:
    """Shapes or dtypes that do not go together raise ValueError, with both in the message."""
    case = Case(weighted=True).fit(loss)
    tensors = case.tensors(loss)
    raises(ValueError, loss, case, {**tensors, "target": tensors["target"][:3]}, "5", "3")
    wrong_dtype = {**tensors, "target": tensors["target"].float()}
    raises(ValueError, loss, case, wrong_dtype, "float32", "int64")
    if "weight" in tensors:
        raises(ValueError, loss, case, {**tensors, "weight": tensors["weight"][:4]}, "11", "4")
        other = {**tensors, "weight": tensors["weight"].double()}
        raises(ValueError, loss, case, other, case.dtype, "float64")
    if "linear_weight" in tensors:
        narrow = {**tensors, "linear_weight": tensors["linear_weight"][:, :4]}
        raises(ValueError, loss, case, narrow, "7", "4")
        other = {**tensors, "linear_weight": tensors["linear_weight"].double()}
        raises(ValueError, loss, case, other, case.dtype, "float64")
    if "reduction" in loss.options:
        raises(ValueError, loss, replace(case, reduction="average"), tensors, "average")


def check_arguments_untouched(loss: impls.Loss) -> None:
    """No argument is overwritten, in forward or in backward, but the input if that is declared."""
    case = Case(weighted=True, ignored=(1,), label_smoothing=0.1).fit(loss)
    tensors = case.tensors(loss)
    own = ("input",) if loss.support.overwrites_input else ()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    upstream = case.upstream().to(tensors["input"])  # as it is given: no copy is made of this one
    given = upstream.clone()
    gradients(loss, case, tensors, upstream)
    for name in tensors.keys() - own:
        expect(torch.equal(tensors[name], before[name]), f"{name} is overwritten ({case})")
    expect(torch.equal(upstream, given), f"the upstream gradient is overwritten ({case})")


def check_positional(loss: impls.Loss) -> None:
    """It drops in for PyTorch's: the same names and defaults, tensors by position."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    order = {"logits": ("input", "target"), "linear": ("input", "linear_weight", "target")}
    value = call(lambda: loss.fn(*(tensors[name] for name in order[loss.level])), "defaults")
    options = {name: tensors[name] for name in order[loss.level]}
    right = oracle.ORACLES[loss.level](**options)
    expect(
        oracle.error(value, right) < tolerance(loss, 1e-5),
        "called with tensors alone, it is not the mean",
    )


def raises(
    kind: type[Exception], loss: impls.Loss, case: Case, tensors: Tensors, *words: str
) -> None:
    """Raise ``Wrong`` unless the call raises ``kind`` with all ``words`` in its message."""
    try:
        value = loss.fn(**tensors, **case.options(loss))
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        expect(not missing, f"the message {str(error)!r} does not name {' and '.join(missing)}")
    except Exception as error:
        raise Wrong(f"it raises {type(error).__name__}, not {kind.__name__}: {error}") from error
    else:
        named = " and ".join(words)
        raise Wrong(f"it returns {value.tolist()}, where {kind.__name__} is due, naming {named}")
