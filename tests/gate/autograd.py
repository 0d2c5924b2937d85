"""Properties of the gate: a loss is differentiated like any other function of torch."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.case import (
    Case,
    call,
    expect,
    forward,
    gradients,
    grads_of,
    reductions,
    tolerance,
)
from tests.gate.values import judge


def check_upstream(loss: impls.Loss) -> None:
    """The upstream gradient is used: each row's own, whatever its size or sign."""
    case = Case(reduction="none").fit(loss)
    tensors = case.tensors(loss)
    for factor in (1.0, -3.0, 1e-4, 1e4):
        grads = gradients(loss, case, tensors, factor * case.upstream())
        right = oracle.expected(loss.level, tensors, factor * case.upstream(), **case.options(loss))
        for name, grad in grads.items():
            expect(
                oracle.error(grad, right[name]) < tolerance(loss, 1e-4),
                f"the gradient of {name} is wrong for an upstream gradient of {factor:g} × normal "
                f"({case})",
            )
    if case.reduction == "none":
        one = torch.zeros(case.n)
        one[2] = 1.0
        grad = gradients(loss, case, tensors, one)["input"]
        expect(
            grad[2].abs().sum() > 0 and not grad[[0, 1, 3, 4]].any(),
            f"with an upstream gradient for row 2 alone, other rows have one ({case})",
        )
    judge(loss, replace(case, n=1))
    for reduction in reductions(loss):
        if reduction == "none":
            continue
        scalar = Case(reduction=reduction).fit(loss)
        once = gradients(loss, scalar, tensors, torch.tensor(1.0))
        tripled = gradients(loss, scalar, tensors, torch.tensor(3.0))
        for name, grad in once.items():
            expect(
                oracle.error(tripled[name], 3 * grad) < tolerance(loss, 1e-5),
                f"three times the upstream gradient is not three times that of {name} ({scalar})",
            )


def check_backward_twice(loss: impls.Loss) -> None:
    """With retain_graph, a second backward gives the same gradients, or raises: never others."""
    for reduction in reductions(loss):
        case = Case(reduction=reduction).fit(loss)
        gradients(loss, case, case.tensors(loss), case.upstream())  # once it must not raise
        value, leaves = forward(loss, case, case.tensors(loss))
        try:
            first = grads_of(value, leaves, case.upstream(), retain_graph=True)
            kept = [grad.clone() for grad in first]
            second = grads_of(value, leaves, case.upstream())
        except RuntimeError:  # what torch.compile makes of retain_graph
            continue
        for name, a, b, c in zip(leaves, kept, second, first, strict=True):
            expect(torch.equal(a, b), f"the second backward's gradient of {name} differs ({case})")
            expect(torch.equal(a, c), f"the second backward overwrites {name}'s first ({case})")


def check_frozen(loss: impls.Loss) -> None:
    """Arguments that need no gradient may be any of them, or all; others' gradients stay right."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    names = [name for name in oracle.DIFFERENTIABLE if name in tensors]
    full = gradients(loss, case, tensors, case.upstream())
    for count in range(1, len(names)):
        for chosen in itertools.combinations(names, count):
            some = gradients(loss, case, tensors, case.upstream(), chosen)
            for name, grad in some.items():
                expect(
                    oracle.error(grad, full[name]) < tolerance(loss, 1e-6),
                    f"the gradient of {name} is wrong when {', '.join(chosen)} alone need one "
                    f"({case})",
                )
    value = call(
        lambda: loss.fn(**tensors, **case.options(loss)), f"{case}; nothing needs a gradient"
    )
    expect(not value.requires_grad, f"the value needs a gradient where no argument does ({case})")
    leaves = {name: tensors[name].clone().requires_grad_() for name in names}
    with torch.no_grad():
        again = call(
            lambda: loss.fn(**{**tensors, **leaves}, **case.options(loss)), f"{case}; no_grad"
        )
    expect(
        oracle.error(again, value) < tolerance(loss, 1e-6) and not again.requires_grad,
        f"the value differs under no_grad ({case})",
    )


def check_accumulates(loss: impls.Loss) -> None:
    """``backward()`` adds to ``.grad``, as for any other function."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    value, leaves = forward(loss, case, tensors)
    upstream = case.upstream().to(value)
    call(lambda: value.backward(upstream), str(case))
    once = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    again = loss.fn(**{**tensors, **leaves}, **case.options(loss))
    again.backward(upstream)
    for name, leaf in leaves.items():
        expect(
            oracle.error(leaf.grad, 2 * once[name]) < tolerance(loss, 1e-6),
            f"two backward passes do not double {name}.grad ({case})",
        )


def check_not_a_leaf(loss: impls.Loss) -> None:
    """Its arguments may be results of other functions, used again after it."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    leaf = tensors["input"].clone().requires_grad_()
    hidden = leaf * 2
    value = loss.fn(**{**tensors, "input": hidden}, **case.options(loss))
    call(lambda: (value + hidden.square().sum()).backward(), f"{case}; the input is used twice")
    right = oracle.expected(
        loss.level, {**tensors, "input": 2 * tensors["input"]}, torch.tensor(1.0)
    )["input"]
    expected = 2 * (right + 2 * 2 * tensors["input"].double())
    expect(
        oracle.error(leaf.grad, expected) < tolerance(loss, 1e-5),
        f"the gradient is wrong for an input that is computed, and used again ({case})",
    )


def check_double_backward(loss: impls.Loss) -> None:
    """A penalty on its gradient is differentiated right, or raises: never silently left out."""
    case = Case(n=3, v=5, d=4, dtype="float64")
    if case.dtype not in loss.support.dtypes:
        raise SkipTest(f"no {case.dtype}")
    # A graph that torch.compile made for other shapes may raise where one made for these does not.
    torch.compiler.reset()

    def penalised(fn: Callable[..., Tensor]) -> Tensor:
        leaf = case.tensors(loss)["input"].requires_grad_()
        value = fn(**{**case.tensors(loss), "input": leaf}, **case.options(loss))
        (grad,) = torch.autograd.grad(value, [leaf], create_graph=True)
        return torch.autograd.grad(value + grad.square().sum(), [leaf])[0]

    # Without a penalty it must not raise.
    gradients(loss, case, case.tensors(loss), case.upstream())
    try:
        found = penalised(loss.fn)
    except RuntimeError:
        return
    right = penalised(oracle.ORACLES[loss.level])
    expect(oracle.error(found, right) < 1e-9, f"the gradient with a penalty is wrong ({case})")
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
