"""The gate: properties of a right cross entropy. A loss has each of them, or does not pass.

A property is a function ``check_NAME(loss)`` of one of the topics. It raises ``Wrong`` if the loss
lacks the property, and ``unittest.SkipTest`` if the property is about something that the loss does
not offer. It tries its cases from small to large, so the first that fails is the smallest. The
first line of its docstring is what a report says of a property that fails.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

import impls
from tests.gate import autograd, calls, edge_cases, surroundings, values
from tests.gate.case import Wrong as Wrong

CHECKS = {
    name.removeprefix("check_"): check
    for topic in (values, edge_cases, calls, autograd, surroundings)
    for name, check in vars(topic).items()
    if name.startswith("check_")
}


def check_property(loss: impls.Loss, check: str) -> None:
    """Raise ``Wrong`` unless ``loss`` has the property ``check``, one of ``CHECKS``."""
    if loss.support.overwrites_input and check != "arguments_untouched":
        loss = replace(loss, fn=given_a_copy(loss.fn))
    CHECKS[check](loss)


def given_a_copy(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn``, which overwrites its input, called with a copy of it."""

    @functools.wraps(fn)
    def spared(input: Tensor, *others: Any, **options: Any) -> Tensor:
        return fn(input.clone(), *others, **options)

    return spared
