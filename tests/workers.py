"""Which tests a worker of pytest-xdist runs."""

from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist loadgroup`` a worker runs all tests of a file, in the gate all tests of a loss.

    So no two workers compile a loss, or measure what the tests of a file share. pytest-xdist's own
    groups have no effect with pytest 9.2 (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OfFilesAndLosses(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return OfFilesAndLosses(config, log)


def group(nodeid: str) -> str:
    """The name of the tests that one worker runs: of a loss in the gate, of a file elsewhere."""
    file, _, test = nodeid.partition("::")
    return test.partition("-")[0] if file.endswith("gate/test_gate.py") else file
