"""Properties of the gate: other calls, autocast and ``torch.compile`` do not disturb a loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.case import (
    NATIVE,
    Case,
    Tensors,
    call,
    expect,
    forward,
    gradients,
    grads_of,
    tolerance,
)
from tests.gate.values import judge


def check_no_stale_state(loss: impls.Loss) -> None:
    """Two losses alive at once do not disturb each other, nor what the first has returned."""
    a, b = Case(seed=1).fit(loss), Case(seed=2).fit(loss)
    alone = gradients(loss, a, a.tensors(loss), a.upstream())
    kept = {name: grad.clone() for name, grad in alone.items()}
    value_a, leaves_a = forward(loss, a, a.tensors(loss))
    value_b, leaves_b = forward(loss, b, b.tensors(loss))
    grads_a = grads_of(value_a, leaves_a, a.upstream())
    grads_of(value_b, leaves_b, b.upstream())
    for name, grad in zip(leaves_a, grads_a, strict=True):
        expect(
            oracle.error(grad, kept[name]) < tolerance(loss, 1e-6),
            f"the gradient of {name} depends on another call made since its forward ({a})",
        )
        expect(
            torch.equal(alone[name], kept[name]), f"{name}'s gradient is overwritten later ({a})"
        )
    for case in (replace(a, n=3, v=5), replace(a, n=7, v=23), a):
        judge(loss, case, about="after calls with other shapes")


def check_deterministic(loss: impls.Loss) -> None:
    """The same call gives the same bits."""
    case = Case(n=64, v=1031).fit(loss)
    tensors = case.tensors(loss)
    first = gradients(loss, case, tensors, case.upstream())
    for _ in range(3):
        for name, grad in gradients(loss, case, tensors, case.upstream()).items():
            expect(torch.equal(grad, first[name]), f"the gradient of {name} varies ({case})")


def check_autocast(loss: impls.Loss) -> None:
    """Under autocast it is as precise as PyTorch's own loss, takes its dtypes and gives them."""
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
        # Weights are float32, as in training, of a loss without float32 too: autocast casts them.
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in case.tensors(loss).items()
        }
        tensors["input"] = tensors["input"].to(dtype)
        where = f"{case}; autocast, input {dtype}"
        native = evaluate(NATIVE[loss.level], tensors)
        actual = call(lambda: evaluate(loss.fn, tensors), where)  # noqa: B023  called at once
        expected = oracle.expected(loss.level, tensors, upstream, **options)
        rounding = "float32" if loss.level == "logits" and dtype == torch.float32 else "bfloat16"
        for name, right in expected.items():
            expect(
                actual[name].dtype == native[name].dtype,
                f"{name} is {actual[name].dtype}, PyTorch's {native[name].dtype} ({where})",
            )
            found, theirs = oracle.error(actual[name], right), oracle.error(native[name], right)
            expect(
                found <= oracle.budget(theirs, rounding),
                f"{name} is off by {found:.2g}, PyTorch's own by {theirs:.2g} ({where})",
            )


def check_in_a_compiled_step(loss: impls.Loss) -> None:
    """A caller's ``torch.compile`` around it changes nothing."""
    case = Case(label_smoothing=0.1, ignored=(1,)).fit(loss)
    compiled = torch.compile(lambda **arguments: 2 * loss.fn(**arguments), backend="aot_eager")
    tensors, options, upstream = case.tensors(loss), case.options(loss), case.upstream()
    actual = call(
        lambda: oracle.evaluate(compiled, tensors, upstream, **options), f"{case}; compiled"
    )
    for name, right in oracle.expected(loss.level, tensors, upstream, **options).items():
        expect(
            oracle.error(actual[name], 2 * right) < tolerance(loss, 1e-5),
            f"{name} is wrong inside a function that is compiled ({case})",
        )
