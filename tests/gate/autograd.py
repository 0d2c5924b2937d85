"""Properties of the gate: a loss is differentiated like any other function of torch."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.case import (
    Case,
    backward,
    call,
    call_loss,
    describe,
    expect,
    expect_close,
    forward,
    gradients,
    reductions,
    tolerance,
)
from tests.gate.values import HALVES, judge

# What a loss says that has no second backward: torch ("a second time"), torch.compile
# ("retain_graph"), and losses whose first backward takes what forward saved.
REFUSES_SECOND_BACKWARD = re.compile(
    "second|twice|again|retain_graph|earlier backward|already|in-?place", re.IGNORECASE
)


def check_upstream(loss: impls.Loss) -> None:
    """Backward multiplies each row by its own upstream gradient, of any size and sign."""
    case = Case(reduction="none").fit(loss)
    tensors = case.tensors(loss)
    for factor in (1.0, -3.0, 1e-4, 1e4):
        grads = gradients(loss, case, tensors, factor * case.upstream())
        expected = oracle.expected(
            loss.level, tensors, factor * case.upstream(), **case.options(loss)
        )
        for name, grad in grads.items():
            what = f"the gradient of {name} for an upstream gradient of {factor:g} × normal"
            expect_close(grad, expected[name], tolerance(loss, 1e-4), what, str(case))
    if case.reduction == "none":
        one = torch.zeros(case.n)
        one[2] = 1.0
        grad = gradients(loss, case, tensors, one)["input"]
        expect(
            grad[2].abs().sum() > 0 and not grad[[0, 1, 3, 4]].any(),
            f"row 2 alone has an upstream gradient, but other rows have a gradient ({case})",
        )
    judge(loss, replace(case, n=1))
    for reduction in reductions(loss):
        if reduction == "none":
            continue
        scalar = Case(reduction=reduction).fit(loss)
        once = gradients(loss, scalar, tensors, torch.tensor(1.0))
        tripled = gradients(loss, scalar, tensors, torch.tensor(3.0))
        for name, grad in once.items():
            what = f"the gradient of {name} for three times the upstream gradient"
            expect_close(tripled[name], 3 * grad, tolerance(loss, 1e-5), what, str(scalar))


def check_backward_twice(loss: impls.Loss) -> None:
    """With retain_graph, a second backward is right for its own upstream gradient, or raises."""
    for reduction in reductions(loss):
        case = Case(reduction=reduction).fit(loss)
        gradients(loss, case, case.tensors(loss), case.upstream())  # once it must not raise
        value, leaves = forward(loss, case, case.tensors(loss))
        try:
            first = backward(value, leaves, case.upstream(), retain_graph=True)
            kept = [grad.clone() for grad in first]
            second = backward(value, leaves, case.upstream(), retain_graph=True)
            third = backward(value, leaves, -1.5 * case.upstream())
        except RuntimeError as error:
            message = str(error).partition("\n")[0]
            expect(
                REFUSES_SECOND_BACKWARD.search(message) is not None,
                f"a second backward raises for another reason: {message} ({case})",
            )
            continue
        for name, a, b in zip(leaves, kept, third, strict=True):
            what = f"the gradient of {name} of a third backward, for -1.5 × the upstream gradient,"
            expect_close(b, -1.5 * a, tolerance(loss, 1e-5), what, str(case))
        for name, a, b, c in zip(leaves, kept, second, first, strict=True):
            expect(
                torch.equal(a, b), f"the second backward gives another gradient of {name} ({case})"
            )
            expect(
                torch.equal(a, c),
                f"the second backward overwrites the first gradient of {name} ({case})",
            )


def check_frozen(loss: impls.Loss) -> None:
    """If some arguments need no gradient, or none does, all other results stay right."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    names = [name for name in oracle.DIFFERENTIABLE if name in tensors]
    full = gradients(loss, case, tensors, case.upstream())
    for count in range(1, len(names)):
        for chosen in itertools.combinations(names, count):
            some = gradients(loss, case, tensors, case.upstream(), chosen)
            for name, grad in some.items():
                what = f"the gradient of {name} if only {' and '.join(chosen)} requires a gradient"
                expect_close(grad, full[name], tolerance(loss, 1e-6), what, str(case))
    value = call_loss(loss, case, tensors, "no argument requires a gradient")
    expect(not value.requires_grad, f"the value requires a gradient, no argument does ({case})")
    leaves = {name: tensors[name].clone().requires_grad_() for name in names}
    with torch.no_grad():
        again = call_loss(loss, case, {**tensors, **leaves}, "no_grad")
    expect_close(again, value, tolerance(loss, 1e-6), "the value under no_grad", str(case))
    expect(not again.requires_grad, f"the value requires a gradient under no_grad ({case})")


def check_value_alone(loss: impls.Loss) -> None:
    """In half precision the value is the same whether or not a gradient is wanted."""
    half = next((dtype for dtype in HALVES if dtype in loss.support.dtypes), None)
    if half is None:
        raise SkipTest("no bfloat16 or float16")
    case = Case(n=6, v=37, dtype=half).fit(loss)
    value, _ = forward(loss, case, case.tensors(loss))
    alone = call_loss(loss, case, case.tensors(loss), "no gradient wanted")
    same = value.dtype == alone.dtype
    expect(same, f"the value is {value.dtype}, and {alone.dtype} without a gradient ({case})")
    allowed = 1e-5 if value.dtype == torch.float32 else oracle.BAND[half]
    expect_close(
        value.detach(), alone, allowed, "the value, compared with no gradient wanted,", str(case)
    )


def check_inference_mode(loss: impls.Loss) -> None:
    """The value is the same under ``inference_mode``."""
    case = Case(ignored=(1,)).fit(loss)
    tensors = case.tensors(loss)
    exact = oracle.ORACLES[loss.level](**tensors, **case.options(loss))
    with torch.inference_mode():
        leaf = tensors["input"].clone()
        value = call_loss(loss, case, {**tensors, "input": leaf}, "inference_mode").clone()
    expect_close(value, exact, tolerance(loss, 1e-5), "the value under inference_mode", str(case))


def check_not_a_leaf(loss: impls.Loss) -> None:
    """The input may be the result of another function, and may be used again after the loss."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    leaf = tensors["input"].clone().requires_grad_()
    hidden = leaf * 2
    value = call_loss(loss, case, {**tensors, "input": hidden})
    call(lambda: (value + hidden.square().sum()).backward(), f"{case}; the input is used twice")
    exact = oracle.expected(
        loss.level, {**tensors, "input": 2 * tensors["input"]}, torch.tensor(1.0)
    )["input"]
    expected = 2 * (exact + 2 * 2 * tensors["input"].double())
    what = "the gradient of an input that is computed, and is used again"
    expect_close(leaf.grad, expected, tolerance(loss, 1e-5), what, str(case))


# What says that a loss has no second derivative: our losses and torch's functions, torch.compile,
# ``once_differentiable``, and a graph that was compiled without ``create_graph``.
NO_SECOND_DERIVATIVE = r"derivative|double backward|differentiate twice|create_graph"


def check_double_backward(loss: impls.Loss) -> None:
    """The gradient of a gradient penalty is right, or the loss raises and says what it lacks."""
    case = Case(n=3, v=5, d=4, dtype="float64")
    if case.dtype not in loss.support.dtypes:
        raise SkipTest(f"no {case.dtype}")
    # A graph that torch.compile made for other shapes may raise where a graph for these does not.
    torch.compiler.reset()

    def differentiate_penalty(fn: Callable[..., Tensor]) -> Tensor:
        leaf = case.tensors(loss)["input"].requires_grad_()
        value = fn(**{**case.tensors(loss), "input": leaf}, **case.options(loss))
        (grad,) = torch.autograd.grad(value, [leaf], create_graph=True)
        return torch.autograd.grad(value + grad.square().sum(), [leaf])[0]

    # Without a penalty it must not raise.
    gradients(loss, case, case.tensors(loss), case.upstream())
    try:
        grad = differentiate_penalty(loss.fn)
    except RuntimeError as error:
        expect(
            re.search(NO_SECOND_DERIVATIVE, str(error)),
            f"a gradient penalty raises an error that does not say that the loss has no second "
            f"derivative: {describe(error)} ({case})",
        )
        return
    expected = differentiate_penalty(oracle.ORACLES[loss.level])
    expect_close(grad, expected, 1e-9, "the gradient with a gradient penalty", str(case))
    leaves = {name: tensor for name, tensor in case.tensors(loss).items() if name != "target"}
    others = {"target": case.tensors(loss)["target"], **case.options(loss)}
    expect(
        torch.autograd.gradgradcheck(
            lambda *given: loss.fn(**dict(zip(leaves, given, strict=True)), **others),
            tuple(tensor.requires_grad_() for tensor in leaves.values()),
            raise_exception=False,
        ),
        f"gradgradcheck fails ({case})",
    )
