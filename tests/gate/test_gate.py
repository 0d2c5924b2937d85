"""The gate: every implementation has every property of ``tests.gate``."""

import re
from dataclasses import replace

import pytest

import impls
from tests.gate.case import Wrong
from tests.gate.runner import CHECKS, hold

# "dtypes" takes the longest, by far where each dtype is compiled anew: it is a test for each.
DTYPES = [f"dtypes.{dtype}" for dtype in impls.Support().dtypes]
TESTS = [test for check in CHECKS for test in (DTYPES if check == "dtypes" else [check])]


@pytest.mark.parametrize("test", TESTS)
def test_gate(test: str, loss: impls.Loss) -> None:
    check, _, dtype = test.partition(".")
    deviation, lacking = loss.support.deviations.get(check), None
    if dtype and dtype not in loss.support.dtypes:
        pytest.skip(f"no {dtype}")
    if dtype and deviation is None:
        loss = replace(loss, support=replace(loss.support, dtypes=(dtype,)))
    elif dtype and dtype != loss.support.dtypes[0]:
        pytest.skip(f"as it deviates in some dtype, {loss.support.dtypes[0]}'s test tries them all")
    try:
        hold(loss, check)
    except Wrong as wrong:
        lacking = wrong
    if deviation is not None:
        if lacking is not None:
            told_apart(deviation, str(lacking))
            pytest.xfail(deviation)
        pytest.fail(
            f"{loss.name} deviates no more: strike {check!r} off its Support.deviations "
            f"({deviation})",
            pytrace=False,
        )
    if lacking is not None:
        # The property and the case that shows it say it all; a traceback would bury them.
        pytest.fail(f"{loss.name}: {CHECKS[check].__doc__}\nNo: {lacking}", pytrace=False)


def told_apart(deviation: str, message: str) -> None:
    """Fail unless the loss deviates as it is declared to: a crash is no other deviation."""
    declared = re.search(r"raises (\w+)", deviation)
    if declared:
        assert f"raises {declared[1]}" in message, f"{deviation!r} is declared, not: {message}"
    elif "cannot" not in deviation:
        assert "it raises" not in message, f"{deviation!r} is declared, not: {message}"


def test_deviations_are_from_properties(loss: impls.Loss) -> None:
    assert loss.support.deviations.keys() <= CHECKS.keys()
