"""The ``loss`` fixture: every implementation in turn, or those that ``--impl`` names.

A sharded one comes across 1, 2, 3 and 4 ranks, each time as one linear loss.
"""

import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import impls
from benchmarks.measure.availability import Unmeasurable, check_device
from benchmarks.ranks.pool import UNEVEN, Ranks
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
        marker = metafunc.definition.get_closest_marker("ranks")
        counts = tuple(UNEVEN) if marker is None else marker.args
        cases = [case for name in chosen for case in across(name, counts)]
        metafunc.parametrize("loss", cases, indirect=True)


def across(name: str, counts: tuple[int, ...]) -> list[Any]:
    """The implementation once or, if it is a sharded one, for each number of ranks."""
    try:
        loss = impls.load(name)
    except impls.Unavailable:
        return [pytest.param((name, 0), id=name)]  # it is skipped or failed once
    if loss.level != "sharded":
        return [pytest.param((name, 0), id=name)]
    return [pytest.param((name, k), id=f"{name}-{k}-ranks") for k in counts]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--impl``, only what is about an implementation."""
    if config.getoption("--impl"):
        about = [item for item in items if "loss" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in about])
        items[:] = about


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End this process if CUDA is broken in it.

    After an assertion in a kernel every call of CUDA fails, so all other tests would. Of several
    workers (pytest-xdist) one that ends is replaced, and its test is reported as failed.
    """
    result = yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            reason = f"CUDA is broken after {item.nodeid}: {str(error).partition(chr(10))[0]}"
            if not hasattr(item.config, "workerinput"):
                pytest.exit(reason, returncode=3)
            print(reason, file=sys.__stderr__, flush=True)
            os._exit(3)
    return result


@pytest.fixture(scope="session")
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """The processes that all sharded losses run on.

    Each of them would compile what linear.fused's gate has compiled already, for minutes: they do
    so with ``--impl`` alone, and in ``tests.benchmarks.ranks.test_pool``.
    """
    device = request.config.getoption("--device")
    here = torch.cuda.device_count() if device == "cuda" else max(UNEVEN)
    compiles = bool(request.config.getoption("--impl"))
    with Ranks(min(here, max(UNEVEN)), device=device, compiles=compiles) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def loss(request: pytest.FixtureRequest) -> impls.Loss:
    """The implementation, of whose devices the one that is asked for is left."""
    name, k = request.param
    device = request.config.getoption("--device")
    try:
        check_device(device)
        found = impls.load(name)
    except (impls.Unavailable, Unmeasurable) as reason:
        if request.config.getoption("--require-all"):
            pytest.fail(f"{name}: {reason}")
        pytest.skip(f"{name}: {reason}")
    if device not in found.support.devices:
        pytest.skip(f"{name} runs on {', '.join(found.support.devices)}, not on {device}")
    if device == "cuda" and k > torch.cuda.device_count():
        pytest.skip(f"{k} ranks need as many GPUs; here are {torch.cuda.device_count()}")
    if k:
        found = request.getfixturevalue("ranks").loss(name, k)
    support = found.support
    dtypes, deviations = support.dtypes_on(device), support.deviations_on(device)
    on_device = replace(support, devices=(device,), dtypes=dtypes, deviations=deviations)
    return replace(found, support=on_device)
