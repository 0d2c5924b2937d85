"""The gate: every implementation has every property of ``tests.checks``."""

import pytest

import impls
from tests.checks import CHECKS, Wrong, hold


@pytest.mark.parametrize("check", CHECKS)
def test_gate(check: str, loss: impls.Loss) -> None:
    deviation, lacking = loss.support.deviations.get(check), None
    try:
        hold(loss, check)
    except Wrong as wrong:
        lacking = wrong
    if deviation is not None:
        if lacking is not None:
            pytest.xfail(deviation)
        pytest.fail(
            f"{loss.name} deviates no more: strike {check!r} off its Support.deviations "
            f"({deviation})",
            pytrace=False,
        )
    if lacking is not None:
        # The property and the case that shows it say it all; a traceback would bury them.
        pytest.fail(f"{loss.name}: {CHECKS[check].__doc__}\nNo: {lacking}", pytrace=False)


def test_deviations_are_from_properties(loss: impls.Loss) -> None:
    assert loss.support.deviations.keys() <= CHECKS.keys()
