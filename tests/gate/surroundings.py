"""Properties: autocast and a caller's torch.compile change nothing."""

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.budget import NATIVE
from tests.gate.case import Case, Tensors, call, expect, tolerance


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
