"""The ``loss`` fixture: every implementation in turn, or those that ``--impl`` names."""

from dataclasses import replace

import pytest

import impls
from benchmarks.common import Unmeasurable, check_device
from impls.loss import INTERPRETED

if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def convert_float_too(argument):
        """To a kernel a float argument is a tensor; triton 3.9's interpreter leaves it a float."""
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = convert_float_too


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
    group.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the gate's tensors are"
    )
    group.addoption("--large", action="store_true", help="also with more than 2³¹ logits")


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
    """The implementation, of whose devices the one that is asked for is left."""
    device = request.config.getoption("--device")
    try:
        check_device(device)
        found = impls.load(request.param)
    except (impls.Unavailable, Unmeasurable) as reason:
        if request.config.getoption("--require-all"):
            pytest.fail(f"{request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    if device not in found.support.devices:
        pytest.skip(f"{request.param} runs on {', '.join(found.support.devices)}, not on {device}")
    return replace(found, support=replace(found.support, devices=(device,)))
