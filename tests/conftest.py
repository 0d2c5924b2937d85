"""The ``loss`` fixture: all implementations in turn, or the implementations that ``--impl`` names.

A sharded loss runs across 1, 2, 3 and 4 ranks, each time as a linear loss.
"""

import logging
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import impls
from benchmarks.environment.variables import restart
from benchmarks.measure.availability import Unmeasurable, check_device
from benchmarks.ranks.pool import UNEVEN, Ranks
from impls.loss import INTERPRETED

# The losses that compile, each with its share of the gate's time, and the properties for which they
# compile the most graphs: 2 to 3 s each.
COMPILED = {
    *("logits.compiled", "logits.fused", "logits.fused_in_place"),
    *("linear.compiled", "linear.cce"),
}
MANY_GRAPHS = {"random", "softcap_and_z_loss", "strides", "dtypes.float64", "dtypes.float16"}

if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def convert_float_too(argument):
        """Make a float argument a tensor, as in a kernel. Triton 3.9's interpreter does not."""
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
        help="test only this implementation: a name, or a path to a Python file (repeatable)",
    )
    group.addoption(
        "--require-all",
        action="store_true",
        help="fail if an implementation is not available here (without it: skip)",
    )
    group.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="the device of the tensors (default: cpu)",
    )
    group.addoption("--large", action="store_true", help="also test with more than 2³¹ logits")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--benchmark-only"):
        restart("pinned", [sys.executable, *sys.orig_argv[1:]])
    # torch.compile's trace would fill the report of a failed test with hundreds of lines.
    logging.getLogger("torch.__trace").disabled = True
    for name in config.getoption("--impl"):
        try:
            impls.load(name)
        except impls.UnknownImplementation as error:
            raise pytest.UsageError(str(error)) from error
        except impls.Unavailable:
            pass  # its tests are skipped, or fail with --require-all


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--impl") or impls.names()
        marker = metafunc.definition.get_closest_marker("ranks")
        counts = tuple(UNEVEN) if marker is None else marker.args
        cases = [case for name in chosen for case in rank_parameters(name, counts)]
        metafunc.parametrize("loss", cases, indirect=True)


def rank_parameters(name: str, counts: tuple[int, ...]) -> list[Any]:
    """The parameters of an implementation: a sharded loss has them for each number of ranks."""
    try:
        loss = impls.load(name)
    except impls.Unavailable:
        return [pytest.param((name, 0), id=name)]  # its test is skipped or fails
    if loss.level != "sharded":
        return [pytest.param((name, 0), id=name)]
    return [pytest.param((name, k), id=f"{name}-{k}-ranks") for k in counts]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what compiles many graphs as slow. With ``--impl``, keep tests of implementations."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "loss" in parameters and parameters.get("test") in MANY_GRAPHS:
            name, _ = parameters["loss"]
            if name in COMPILED:
                item.add_marker("slow")
    if config.getoption("--impl"):
        about = [item for item in items if "loss" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in about])
        items[:] = about


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End this process if CUDA is broken in it.

    After an assertion in a kernel, all calls of CUDA fail, so all other tests would fail. If a
    worker of pytest-xdist ends, xdist starts another and reports the test as failed.
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


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ratios that ``tests/impls/test_speed.py`` measured."""
    passed = terminalreporter.stats.get("passed", [])
    properties = [pair for report in passed for pair in report.user_properties]
    if ratios := [text for name, text in properties if name == "× builtin"]:
        terminalreporter.section("× builtin in the same round: median [95 % interval]")
        terminalreporter.write_line("\n".join(ratios))


@pytest.fixture(scope="session")
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """The processes of all sharded losses.

    Each process would compile for minutes what the gate of linear.fused has compiled. So they
    compile only with ``--impl``, and in ``tests.benchmarks.ranks.test_pool``.
    """
    device = request.config.getoption("--device")
    here = torch.cuda.device_count() if device == "cuda" else max(UNEVEN)
    compiles = bool(request.config.getoption("--impl"))
    with Ranks(min(here, max(UNEVEN)), device=device, compiles=compiles) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def loss(request: pytest.FixtureRequest) -> impls.Loss:
    """The implementation, with the support that it has on the device of ``--device``."""
    name, k = request.param
    device = request.config.getoption("--device")
    try:
        check_device(device)
        loss = impls.load(name)
    except (impls.Unavailable, Unmeasurable) as reason:
        if request.config.getoption("--require-all"):
            pytest.fail(f"{name}: {reason}")
        pytest.skip(f"{name}: {reason}")
    if device not in loss.support.devices:
        pytest.skip(f"{name} runs on {', '.join(loss.support.devices)}, not on {device}")
    if device == "cuda" and k > torch.cuda.device_count():
        pytest.skip(f"{k} ranks need as many GPUs; this machine has {torch.cuda.device_count()}")
    if k:
        loss = request.getfixturevalue("ranks").loss(name, k)
    support = loss.support
    dtypes, deviations = support.dtypes_on(device), support.deviations_on(device)
    on_device = replace(support, devices=(device,), dtypes=dtypes, deviations=deviations)
    return replace(loss, support=on_device)
