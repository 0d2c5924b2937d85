"""More than 2³¹ logits, which an index of 32 bits cannot count (``pytest --large``)."""

import pytest

import impls
from benchmarks.measure import memory, oracle
from benchmarks.measure.memory import free_bytes
from tests.gate.case import Case

V, ROWS, REPEATS = 65_537, 32, 1025  # the last 32 rows lie beyond 2³¹


@pytest.mark.ranks
def test_more_than_2_to_the_31_logits(loss: impls.Loss, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--large"):
        pytest.skip("takes minutes and some 10 GiB: --large")
    if "reduction" not in loss.options:
        pytest.skip("no reduction")
    if reason := loss.support.deviations.get("dtypes"):
        request.applymarker(pytest.mark.xfail(reason=reason))
    case = Case(n=ROWS, v=V, d=8, dtype="bfloat16", reduction="sum")
    few = case.tensors(loss)
    options, upstream = case.options(loss), case.upstream()
    [device] = loss.support.devices
    once = memory.peak_memory(lambda: oracle.evaluate(loss.fn, few, upstream, **options), device)
    needed = REPEATS * (once + few["input"].nbytes)
    if needed > free_bytes(device):
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
        assert error < 0.02, f"from row {block * ROWS}: relative error {error:.2g}, allowed 0.02"
    for name in actual.keys() - {"input"}:
        error = oracle.error(actual[name], REPEATS * expected[name])
        assert error < 0.02, f"{name}: relative error {error:.2g}, allowed 0.02"
