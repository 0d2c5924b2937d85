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


def check_property(loss: impls.Loss, name: str) -> None:
    """Raise ``Wrong`` unless ``loss`` has the property ``name``, a key of ``CHECKS``.

    Raise ``unittest.SkipTest`` if the property is about an option or dtype that the loss lacks.
    """
    if loss.support.overwrites_input and name != "arguments_untouched":
        loss = replace(loss, fn=copy_input(loss.fn))
    CHECKS[name](loss)


def copy_input(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn`` with a copy of its input, which ``fn`` overwrites."""

    @functools.wraps(fn)
    def call_with_copy(input: Tensor, *others: Any, **options: Any) -> Tensor:
        return fn(input.clone(), *others, **options)

    return call_with_copy
