"""The ``loss`` fixture: every implementation in turn, or those that ``--impl`` names."""

import pytest

import impls


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gate")
    group.addoption(
        "--impl",
        action="append",
        default=[],
        metavar="NAME",
        help="gate this implementation alone: a name, or a path to a file (repeatable)",
    )
    group.addoption(
        "--require-all",
        action="store_true",
        help="fail, rather than skip, where an implementation is not available here",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("--impl"):
        try:
            impls.load(name)
        except impls.UnknownImplementation as error:
            raise pytest.UsageError(str(error)) from error
        except impls.Unavailable:
            pass  # skipped or failed where it is used


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--impl") or impls.names()
        metafunc.parametrize("loss", chosen, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--impl``, only what is about an implementation."""
    if config.getoption("--impl"):
        about = [item for item in items if "loss" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in about])
        items[:] = about


@pytest.fixture(scope="session")
def loss(request: pytest.FixtureRequest) -> impls.Loss:
    try:
        return impls.load(request.param)
    except impls.Unavailable as reason:
        if request.config.getoption("--require-all"):
            pytest.fail(f"{request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
