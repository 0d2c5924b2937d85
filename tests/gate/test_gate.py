"""The gate: each implementation has each property of ``tests.gate``."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

import impls
from tests.gate.case import Wrong
from tests.gate.runner import CHECKS, check_property, is_stranger, is_style

# "dtypes" takes the longest, and each dtype is compiled anew. So each dtype is a test.
DTYPES = [f"dtypes.{dtype}" for dtype in impls.Support().dtypes]
TESTS = [test for check in CHECKS for test in (DTYPES if check == "dtypes" else [check])]


@pytest.mark.parametrize("test", TESTS)
def test_gate(
    test: str,
    loss: impls.Loss,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    check, _, dtype = test.partition(".")
    deviation, lacking = loss.support.deviations.get(check), None
    if dtype and dtype not in loss.support.dtypes:
        pytest.skip(f"no {dtype}")
    if dtype and deviation is None:
        loss = replace(loss, support=replace(loss.support, dtypes=(dtype,)))
    elif dtype and dtype != loss.support.dtypes[0]:
        pytest.skip(f"the test of {loss.support.dtypes[0]} tries all dtypes, as the loss deviates")
    try:
        check_property(loss, check)
    except Wrong as wrong:
        lacking = wrong
    if lacking is not None:
        record_property("lacks", str(lacking))  # for the short report
    if deviation is not None:
        if lacking is not None:
            assert_declared_deviation(deviation, str(lacking))
            pytest.xfail(deviation)
        pytest.fail(
            f"{loss.name} has this property: delete {check!r} from its Support.deviations "
            f"({deviation})",
            pytrace=False,
        )
    if lacking is not None:
        name, _ = request.node.callspec.params["loss"]
        if is_style(check) and is_stranger(name) and not request.config.getoption("--style"):
            pytest.xfail(f"house style: {lacking}")
        # A traceback would hide the property and the case.
        pytest.fail(f"{loss.name}: {CHECKS[check].__doc__}\nNo: {lacking}", pytrace=False)


def assert_declared_deviation(deviation: str, message: str) -> None:
    """Fail if the loss deviates in another way than it declares."""
    declared = re.search(r"raises (\w+)", deviation)
    if declared:
        assert f"raises {declared[1]}" in message, f"{deviation!r} is declared, not: {message}"
    elif "cannot" not in deviation:
        assert "the loss raises" not in message, f"{deviation!r} is declared, not: {message}"


def test_deviations_are_from_properties(loss: impls.Loss) -> None:
    assert loss.support.deviations.keys() <= CHECKS.keys()
