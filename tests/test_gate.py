"""The gate: every implementation has every property of ``tests.checks``."""

import pytest

import impls
from tests.checks import CHECKS, Wrong


@pytest.mark.parametrize("check", CHECKS)
def test_gate(check: str, loss: impls.Loss) -> None:
    lacking = None
    try:
        CHECKS[check](loss)
    except Wrong as wrong:
        lacking = wrong
    if lacking is not None:
        # The property and the case that shows it say it all; a traceback would bury them.
        pytest.fail(f"{loss.name}: {CHECKS[check].__doc__}\nNo: {lacking}", pytrace=False)
