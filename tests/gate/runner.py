"""The gate: all properties in groups, the check of a loss for one of them, and a short report."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from unittest import SkipTest

from torch import Tensor

import impls
from tests.gate import (
    autograd,
    calls,
    edge_cases,
    logprobs,
    style,
    surroundings,
    training,
    values,
)

# Each group of properties is a module. The order is that of the tests and of the report.
TOPICS = {
    topic.__name__.rpartition(".")[2]: topic
    for topic in (values, edge_cases, calls, autograd, training, surroundings, logprobs, style)
}
GROUPS = {
    group: [name.removeprefix("check_") for name in vars(topic) if name.startswith("check_")]
    for group, topic in TOPICS.items()
}
CHECKS = {
    name: getattr(TOPICS[group], f"check_{name}")
    for group, names in GROUPS.items()
    for name in names
}
REPORT_LINES = 20


def is_style(name: str) -> bool:
    """Whether the property ``name`` is house style."""
    return name in GROUPS["style"]


def is_of_logprobs(name: str) -> bool:
    """Whether the property ``name`` is about log-probabilities, not about a cross entropy."""
    return name in GROUPS["logprobs"]


def is_stranger(name: str) -> bool:
    """Whether ``name``, as ``impls.load`` takes it, is no implementation of this repository."""
    return name.partition("(")[0] not in impls.names()


def check_property(loss: impls.Loss, name: str) -> None:
    """Raise ``Wrong`` unless ``loss`` has the property ``name``, a key of ``CHECKS``.

    Raise ``unittest.SkipTest`` if the property is about an option, dtype or level that the loss
    lacks. Log-probabilities are tried as a linear loss too.
    """
    if loss.support.overwrites_input and name != "arguments_untouched":
        loss = replace(loss, fn=copy_input(loss.fn))
    if loss.level == "logprobs" and not is_of_logprobs(name):
        loss = loss.as_linear()
    if loss.level != "logprobs" and is_of_logprobs(name):
        raise SkipTest("no log-probabilities")
    CHECKS[name](loss)


def copy_input(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn`` with a copy of its input, which ``fn`` overwrites."""

    @functools.wraps(fn)
    def call_with_copy(input: Tensor, *others: Any, **options: Any) -> Tensor:
        return fn(input.clone(), *others, **options)

    return call_with_copy


@dataclass(frozen=True)
class Outcome:
    """What one test found about a stranger's loss."""

    loss: str
    test: str  # a property; "dtypes" has a test for each dtype
    state: str  # "passed", "failed", "skipped" or, if it may fail, "house style" or "declared"
    message: str = ""


def report(outcomes: Iterable[Outcome]) -> list[str]:
    """Whether one loss is right and, if it is not, which properties it lacks, in 20 lines at most.

    Properties go from plain calls to unusual calls, so the first line is the first to look at.
    """
    order = {name: number for number, name in enumerate(CHECKS)}
    in_order = sorted(outcomes, key=lambda one: order.get(one.test.partition(".")[0], -1))
    count = Counter(one.state for one in in_order)
    verdict = "WRONG" if count["failed"] else "RIGHT" if count["passed"] else "NOT TRIED"
    counts = f"fail {count['failed']}, hold {count['passed']}, do not apply {count['skipped']}"
    lines = [f"{in_order[0].loss} is {verdict} (properties: {counts})"]
    dtypes = [
        one.test[7:] for one in in_order if (one.test[:7], one.state) == ("dtypes.", "skipped")
    ]
    if dtypes and verdict != "NOT TRIED":
        lines.append(f"it does not take {', '.join(dtypes)}")
    shown = [f"{one.test}: {one.message}" for one in in_order if one.state == "failed"]
    shown += [
        f"{one.test} ({one.state}): {one.message}"
        for one in in_order
        if one.state in ("house style", "declared")
    ]
    if verdict == "NOT TRIED":
        shown += dict.fromkeys(one.message for one in in_order)
    room = REPORT_LINES - len(lines)
    if len(shown) > room:
        shown[room - 1 :] = [f"… and {len(shown) - room + 1} more"]
    return lines + shown
