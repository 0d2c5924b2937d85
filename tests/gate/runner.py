"""The gate: all properties, and the check of a loss for one of them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

import impls
from tests.gate import autograd, calls, edge_cases, surroundings, values

TOPICS = (values, edge_cases, calls, autograd, surroundings)
CHECKS = {
    name.removeprefix("check_"): check
    for topic in TOPICS
    for name, check in vars(topic).items()
    if name.startswith("check_")
}


def hold(loss: impls.Loss, check: str) -> None:
    """Raise ``Wrong`` unless ``loss`` has the property ``check``, one of ``CHECKS``.

    ``unittest.SkipTest``, if the property is about what the loss does not offer.
    """
    if loss.support.overwrites_input and check != "arguments_untouched":
        loss = replace(loss, fn=given_a_copy(loss.fn))
    CHECKS[check](loss)


def given_a_copy(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn``, which overwrites its input, called with a copy of it."""

    @functools.wraps(fn)
    def spared(input: Tensor, *others: Any, **options: Any) -> Tensor:
        return fn(input.clone(), *others, **options)

    return spared
