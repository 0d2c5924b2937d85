"""The gate: every implementation has every property of ``tests.gate``."""

import re
from dataclasses import replace

import pytest

import impls
from benchmarks.measure import memory, oracle
from tests.gate import CHECKS, Wrong, check_property
from tests.gate.case import Case

# "dtypes" takes the longest, by far where each dtype is compiled anew: it is a test for each.
DTYPES = [f"dtypes.{dtype}" for dtype in impls.Support().dtypes]
TESTS = [test for check in CHECKS for test in (DTYPES if check == "dtypes" else [check])]

# More than 2³¹ logits: the last 32 rows lie beyond.
V, ROWS, REPEATS = 65_537, 32, 1025


@pytest.mark.parametrize("test", TESTS)
def test_gate(test: str, loss: impls.Loss) -> None:
    check, _, dtype = test.partition(".")
    deviation, wrong = loss.support.deviations.get(check), None
    if dtype and dtype not in loss.support.dtypes:
        pytest.skip(f"no {dtype}")
    if dtype and deviation is None:
        loss = replace(loss, support=replace(loss.support, dtypes=(dtype,)))
    elif dtype and dtype != loss.support.dtypes[0]:
        pytest.skip(f"as it deviates in some dtype, {loss.support.dtypes[0]}'s test tries them all")
    try:
        check_property(loss, check)
    except Wrong as error:
        wrong = error
    if deviation is not None:
        if wrong is not None:
            assert_declared(deviation, str(wrong))
            pytest.xfail(deviation)
        pytest.fail(
            f"{loss.name} deviates no more: strike {check!r} off its Support.deviations "
            f"({deviation})",
            pytrace=False,
        )
    if wrong is not None:
        # The property and the case that shows it say it all; a traceback would bury them.
        pytest.fail(f"{loss.name}: {CHECKS[check].__doc__}\nNo: {wrong}", pytrace=False)


def assert_declared(deviation: str, message: str) -> None:
    """Fail unless the loss deviates as it is declared to: a crash is no other deviation."""
    declared = re.search(r"raises (\w+)", deviation)
    if declared:
        assert f"raises {declared[1]}" in message, f"{deviation!r} is declared, not: {message}"
    elif "cannot" not in deviation:
        assert "it raises" not in message, f"{deviation!r} is declared, not: {message}"


def test_deviations_are_from_properties(loss: impls.Loss) -> None:
    assert loss.support.deviations.keys() <= CHECKS.keys()


@pytest.mark.ranks
def test_more_than_2_to_the_31_logits(loss: impls.Loss, request: pytest.FixtureRequest) -> None:
    """An index of 32 bits cannot count them (``pytest --large``)."""
    if not request.config.getoption("--large"):
        pytest.skip("takes minutes and some 10 GiB: --large")
    if reason := loss.support.deviations.get("dtypes"):
        request.applymarker(pytest.mark.xfail(reason=reason))
    case = Case(n=ROWS, v=V, d=8, dtype="bfloat16", reduction="sum")
    few = case.tensors(loss)
    options, upstream = case.options(loss), case.upstream()
    [device] = loss.support.devices
    once = memory.peak_memory(lambda: oracle.evaluate(loss.fn, few, upstream, **options), device)
    needed = REPEATS * (once + few["input"].nbytes)
    if needed > memory.free_bytes(device):
        pytest.skip(f"{loss.name} may need {needed / 2**30:.0f} GiB of {device} memory")
    expected = oracle.expected(loss.level, few, upstream, **options)
    many = {
        name: few[name].repeat(REPEATS, *[1] * (few[name].dim() - 1))
        for name in ("input", "target")
    }
    assert ROWS * REPEATS * V > 2**31 + ROWS * V / 2
    actual = oracle.evaluate(loss.fn, few | many, upstream, **options)
    for block in {*range(0, REPEATS, 64), REPEATS // 2, REPEATS - 2, REPEATS - 1}:
        rows = actual["input"][block * ROWS : (block + 1) * ROWS]
        error = oracle.error(rows, expected["input"])
        assert error < 0.02, f"rows {block * ROWS} and after: {error:.2g}"
    for name in actual.keys() - {"input"}:
        error = oracle.error(actual[name], REPEATS * expected[name])
        assert error < 0.02, f"{name}: {error:.2g}"
