"""Properties of the gate: other calls, and what torch does around a loss, do not disturb it.

Around a loss are autocast, ``torch.compile``, the transforms of ``torch.func``, and a mode in which
tensors have no elements.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle, torch_compat
from benchmarks.plan.fakes import fake
from impls.shared.compile import is_fake
from tests.gate.autograd import NO_SECOND_DERIVATIVE
from tests.gate.case import (
    Case,
    Tensors,
    Wrong,
    backward,
    call,
    describe,
    expect,
    expect_close,
    forward,
    gradients,
    reductions,
    tolerance,
)
from tests.gate.values import HALVES, judge


def check_no_stale_state(loss: impls.Loss) -> None:
    """Calls do not disturb each other or earlier results, nor return them for changed arguments."""
    a, b = Case(seed=1).fit(loss), Case(seed=2).fit(loss)
    alone = gradients(loss, a, a.tensors(loss), a.upstream())
    kept = {name: grad.clone() for name, grad in alone.items()}
    value_a, leaves_a = forward(loss, a, a.tensors(loss))
    kept_value = value_a.detach().clone()
    value_b, leaves_b = forward(loss, b, b.tensors(loss))
    expect(torch.equal(value_a, kept_value), f"a later call overwrites the value ({a})")
    grads_a = backward(value_a, leaves_a, a.upstream())
    backward(value_b, leaves_b, b.upstream())
    for name, grad in zip(leaves_a, grads_a, strict=True):
        what = f"the gradient of {name} if another call comes between forward and backward"
        expect_close(grad, kept[name], tolerance(loss, 1e-6), what, str(a))
        expect(
            torch.equal(alone[name], kept[name]),
            f"a later call overwrites the gradient of {name} ({a})",
        )
    for case in (replace(a, n=3, v=5), replace(a, n=7, v=23), a):
        judge(loss, case, about="after calls with other shapes")
    tensors = a.tensors(loss)
    gradients(loss, a, tensors, a.upstream())
    for name, tensor in b.tensors(loss).items():
        tensors[name].copy_(tensor)
    judge(loss, a, tensors, about="after the input changed in place")


def check_deterministic(loss: impls.Loss) -> None:
    """The same call gives the same bits."""
    case = Case(n=64, v=1031).fit(loss)
    tensors = case.tensors(loss)
    first = gradients(loss, case, tensors, case.upstream())
    for _ in range(3):
        for name, grad in gradients(loss, case, tensors, case.upstream()).items():
            expect(torch.equal(grad, first[name]), f"the gradient of {name} varies ({case})")


def check_autocast(loss: impls.Loss) -> None:
    """Under autocast the loss takes and returns PyTorch's dtypes and is as precise."""
    if "bfloat16" not in loss.support.dtypes:
        raise SkipTest("no bfloat16")
    case = Case(n=6, v=37, label_smoothing=0.1, ignored=(2,)).fit(loss)
    options, upstream = case.options(loss), case.upstream()

    def evaluate(fn: Callable[..., Tensor], tensors: Tensors) -> Tensors:
        def cast(**arguments: Any) -> Tensor:
            with torch.autocast(loss.support.devices[0], torch.bfloat16):
                return fn(**arguments)

        return oracle.evaluate(cast, tensors, upstream, **options)

    for dtype in (torch.float32, torch.bfloat16):
        # Weights are float32, as in training, even if the loss lacks float32: autocast casts them.
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in case.tensors(loss).items()
        }
        tensors["input"] = tensors["input"].to(dtype)
        where = f"{case}; autocast, input {dtype}"
        native = evaluate(oracle.NATIVE[loss.level], tensors)
        actual = call(lambda: evaluate(loss.fn, tensors), where)  # noqa: B023  called at once
        expected = oracle.expected(loss.level, tensors, upstream, **options)
        rounding = "float32" if loss.level == "logits" and dtype == torch.float32 else "bfloat16"
        for name, exact in expected.items():
            what = "the value" if name == "value" else f"the gradient of {name}"
            expect(
                actual[name].dtype == native[name].dtype,
                f"{what} is {actual[name].dtype}, PyTorch's own {native[name].dtype} ({where})",
            )
            error, native_error = (oracle.error(t[name], exact) for t in (actual, native))
            allowed = oracle.budget(native_error, rounding)
            expect(
                error <= allowed,
                f"{what} is wrong: relative error {error:.2g}, allowed {allowed:.2g}, "
                f"PyTorch's own {native_error:.2g} ({where})",
            )


def check_in_a_compiled_step(loss: impls.Loss) -> None:
    """``torch.compile`` of a function that calls the loss changes nothing."""
    case = Case(label_smoothing=0.1, ignored=(1,)).fit(loss)
    compiled = torch.compile(lambda **arguments: 2 * loss.fn(**arguments), backend="aot_eager")
    tensors, options, upstream = case.tensors(loss), case.options(loss), case.upstream()
    actual = call(
        lambda: oracle.evaluate(compiled, tensors, upstream, **options), f"{case}; compiled"
    )
    for name, exact in oracle.expected(loss.level, tensors, upstream, **options).items():
        what = "the value" if name == "value" else f"the gradient of {name}"
        what += " in a compiled function"
        expect_close(actual[name], 2 * exact, tolerance(loss, 1e-5), what, str(case))


# What says that a loss lacks a transform of ``torch.func``: torch names what an operator or an
# ``autograd.Function`` lacks. ``torch.func.grad`` always asks for a second derivative too.
NO_TRANSFORM = rf"vmap|functorch|torch\.func|setup_context|{NO_SECOND_DERIVATIVE}"


def check_func_transforms(loss: impls.Loss) -> None:
    """torch.func's grad and vmap of the loss are right, or raise and say what the loss lacks."""
    case = Case(ignored=(1,)).fit(loss)
    options = case.options(loss)
    tensors, others = (replace(case, seed=seed).tensors(loss) for seed in (0, 1))
    second = {**tensors, "input": others["input"], "target": others["target"]}
    names = [name for name in ("target", *oracle.DIFFERENTIABLE) if name in tensors]
    first = [tensors[name] for name in names]
    batch = [torch.stack([tensors[name], second[name]]) for name in names[:2]] + first[2:]
    batched = (0, 0, *[None] * len(first[2:]))  # target and input alone

    def fn(*given: Tensor) -> Tensor:
        return loss.fn(**dict(zip(names, given, strict=True)), **options)

    try:
        grad = torch.func.grad(fn, argnums=tuple(range(1, len(names))))
        exact, of_second = (
            oracle.expected(loss.level, given, torch.tensor(1.0), **options)
            for given in (tensors, second)
        )
        both = {name: torch.stack([exact[name], of_second[name]]) for name in exact}
        for about, run, expected in (
            ("torch.func.grad", lambda: grad(*first), exact),
            ("torch.func.vmap", lambda: (torch.func.vmap(fn, batched)(*batch),), both),
            ("vmap of grad", lambda: torch.func.vmap(grad, batched)(*batch), both),
        ):
            try:
                results = run()
            except Exception as error:
                missing = f"an error that does not say what the loss lacks: {describe(error)}"
                expect(re.search(NO_TRANSFORM, str(error)), f"{about} raises {missing} ({case})")
                continue
            of = ["value"] if about == "torch.func.vmap" else names[1:]
            for name, actual in zip(of, results, strict=True):
                what = "the value" if name == "value" else f"the gradient of {name}"
                what += f" by {about}"
                expect_close(actual, expected[name], tolerance(loss, 1e-5), what, str(case))
    finally:
        # What torch.compile has seen under a transform would stay uncompiled (docs/findings.md).
        torch.compiler.reset()


def check_fake_tensors(loss: impls.Loss) -> None:
    """On tensors without elements, results are fake tensors like the real results, or it raises."""
    for dtype, reduction in itertools.product(loss.support.dtypes, reductions(loss)):
        case = Case(dtype=dtype, reduction=reduction).fit(loss)
        shapes = {name: tuple(tensor.shape) for name, tensor in case.tensors(loss).items()}
        # Code that is compiled asks for the memory of its tensors, so what compiles does not here.
        with torch.compiler.set_stance("force_eager"), torch_compat.strict_fake_mode():
            tensors = fake(shapes, dtype, loss.support.devices[0])
            upstream = tensors["input"].new_ones((case.n,) if reduction == "none" else ())
            leaves = {
                name: tensors[name].requires_grad_()
                for name in oracle.DIFFERENTIABLE
                if name in tensors
            }
            try:
                value = loss.fn(**tensors, **case.options(loss))
                expect_fake("the value", value, upstream, dtype in HALVES, case)
                grads = backward(value, leaves, upstream)
            except Wrong:
                raise
            except Exception:  # a loss that needs elements may raise anything
                continue
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                expect_fake(f"the gradient of {name}", grad, leaf, False, case)


def expect_fake(
    what: str, actual: Tensor, expected: Tensor, may_be_float32: bool, case: Case
) -> None:
    """Raise ``Wrong`` unless ``actual`` has no elements, and shape, dtype, device of another."""
    where = f"{case}; fake tensors"
    expect(is_fake(actual), f"{what} has elements ({where})")
    shape, wanted = tuple(actual.shape), tuple(expected.shape)
    expect(shape == wanted, f"{what} has the shape {shape}, not {wanted} ({where})")
    dtypes = (expected.dtype, torch.float32) if may_be_float32 else (expected.dtype,)
    expect(actual.dtype in dtypes, f"{what} is {actual.dtype}, not {expected.dtype} ({where})")
    same = actual.device == expected.device
    expect(same, f"{what} is on {actual.device}, not on {expected.device} ({where})")
