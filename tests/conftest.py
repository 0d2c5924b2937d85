"""The ``loss`` fixture: all implementations in turn, or the implementations that ``--impl`` names.

A sharded loss runs across 1, 2, 3 and 4 ranks, each time as a linear loss.
"""

import gc
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
from impls.loss import INTERPRETED, LEVELS_OF_ONE_PROCESS
from tests.gate.case import Case
from tests.gate.runner import GROUPS, Outcome, is_of_logprobs, is_stranger, report
from tests.workers import pytest_xdist_make_scheduler  # noqa: F401  a hook

# The losses that compile: a graph takes 2 to 3 s. `make test` gates two of them, and leaves out the
# properties for which they compile the most graphs. It tests none of the others: the first three
# compile the eager losses or the same rows as the first two, and the last is a rival's.
COMPILED = {"logits.fused", "logprobs.fused"}
COMPILED_ALIKE = {"logits.compiled", "linear.compiled", "logits.fused_in_place", "linear.cce"}
MANY_GRAPHS = {
    *("random", "softcap_and_z_loss", "strides", "dtypes.float64", "dtypes.float16"),
    *("rows_apart", "in_a_model", "many_chunks", "value_alone"),
    *("sizes", "extreme_logits", "micro_batches"),
    *("results", "never_positive", "entropy"),  # in each dtype
}
SLOW_RANKS = {2, 4}  # `make test` gates the sharded losses across 1 rank and across 3

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
    group.addoption(
        "--level",
        choices=LEVELS_OF_ONE_PROCESS,
        help="the level of a module:function whose signature does not tell it",
    )
    group.addoption(
        "--only",
        default="",
        metavar="GROUPS",
        help=f"test only these groups of properties: {', '.join(GROUPS)} (separated by commas)",
    )
    group.addoption(
        "--style",
        action="store_true",
        help="fail if a loss from outside this repository lacks house style (without it: say so)",
    )
    group.addoption("--large", action="store_true", help="also test with more than 2³¹ logits")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--benchmark-only", default=False):
        restart("pinned", [sys.executable, *sys.orig_argv[1:]])
    # torch.compile's trace would fill the report of a failed test with hundreds of lines.
    logging.getLogger("torch.__trace").disabled = True
    for name in config.getoption("--impl"):
        try:
            impls.load(name, config.getoption("--level"))
        except impls.UnknownImplementation as error:
            raise pytest.UsageError(str(error)) from error
        except impls.Unavailable:
            pass  # its tests are skipped, or fail with --require-all
    if unknown := only(config) - GROUPS.keys():
        raise pytest.UsageError(
            f"--only: no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}"
        )
    strangers = [is_stranger(name) for name in config.getoption("--impl")]
    if strangers and all(strangers) and config.getoption("tbstyle") == "auto":
        config.option.tbstyle, config.option.reportchars = "no", ""  # the short report says it


def only(config: pytest.Config) -> set[str]:
    """The groups of properties that ``--only`` names."""
    return set(filter(None, config.getoption("--only").split(",")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--impl") or impls.names()
        level = metafunc.config.getoption("--level")
        marker = metafunc.definition.get_closest_marker("ranks")
        counts = tuple(UNEVEN) if marker is None else marker.args
        cases = [case for name in chosen for case in rank_parameters(name, counts, level)]
        metafunc.parametrize("loss", cases, indirect=True)


def rank_parameters(name: str, counts: tuple[int, ...], level: str | None) -> list[Any]:
    """The parameters of an implementation: a sharded loss has them for each number of ranks."""
    try:
        loss = impls.load(name, level)
    except impls.Unavailable:
        return [pytest.param((name, 0), id=name)]  # its test is skipped or fails
    if loss.level != "sharded":
        marks = [pytest.mark.logprobs] if loss.level == "logprobs" else []
        return [pytest.param((name, 0), id=name, marks=marks)]
    return [pytest.param((name, k), id=f"{name}-{k}-ranks") for k in counts]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what takes long as slow. Keep what ``--impl`` and ``--only`` name.

    Keep the properties of log-probabilities for losses of that level alone.
    """
    items[:] = [
        item
        for item in items
        if not is_of_logprobs(tested(item)) or item.get_closest_marker("logprobs")
    ]
    names = {name for group in only(config) for name in GROUPS[group]}
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "loss" not in parameters:
            continue
        (name, ranks), of_gate = parameters["loss"], "test" in parameters
        many_graphs = of_gate and parameters["test"] in MANY_GRAPHS and name in COMPILED
        if many_graphs or name in COMPILED_ALIKE or (of_gate and ranks in SLOW_RANKS):
            item.add_marker("slow")
        if of_gate and is_stranger(name):
            item.user_properties += [("impl", name), ("test", parameters["test"])]
    if config.getoption("--impl") or names:
        about = [item for item in items if "loss" in getattr(item, "fixturenames", ())]
        if names:
            about = [item for item in about if tested(item).partition(".")[0] in names]
        config.hook.pytest_deselected(items=[item for item in items if item not in about])
        items[:] = about


def pytest_collection_finish() -> None:
    """Keep ``gc.collect``, which each meter of memory calls, from a look at all that is imported.

    It would take a third of a second in each call.
    """
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or C++ libraries would report leaks as Python ends


def tested(item: pytest.Item) -> str:
    """The property that a test of the gate is about, or ""."""
    return str(item.callspec.params.get("test", "")) if hasattr(item, "callspec") else ""


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a short report of each loss from outside this repository, and the ratios of times.

    ``tests/impls/test_speed.py`` measured the ratios.
    """
    outcomes: dict[str, list[Outcome]] = {}
    ratios = []
    for state in ("passed", "failed", "error", "skipped", "xfailed"):
        for test_report in terminalreporter.stats.get(state, []):
            of = dict(test_report.user_properties)
            if "impl" in of:
                outcomes.setdefault(of["impl"], []).append(outcome(state, test_report, of))
            ratios += [text for name, text in of.items() if name == "× builtin"]
    for of_loss in outcomes.values():
        terminalreporter.section("the gate")
        terminalreporter.write_line("\n".join(report(of_loss)))
    if ratios:
        terminalreporter.section("× builtin in the same round: median [95 % interval]")
        terminalreporter.write_line("\n".join(ratios))


def outcome(state: str, test_report: Any, of: dict[str, str]) -> Outcome:
    if state == "xfailed":
        is_declared = not test_report.wasxfail.removeprefix("reason: ").startswith("house style")
        state = "declared" if is_declared else "house style"
    longrepr = test_report.longrepr
    message = longrepr[2] if isinstance(longrepr, tuple) else test_report.longreprtext
    message = of.get("lacks") or message.strip().rpartition("\n")[2].removeprefix("Skipped: ")
    state = "failed" if state == "error" else state
    return Outcome(of["impl"], of["test"], state, message)


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
        loss = impls.load(name, request.config.getoption("--level"))
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
    if is_stranger(name) and support == impls.Support():
        support = replace(support, devices=(device,), dtypes=taken_dtypes(loss, device))
    dtypes, deviations = support.dtypes_on(device), support.deviations_on(device)
    on_device = replace(support, devices=(device,), dtypes=dtypes, deviations=deviations)
    return replace(loss, support=on_device)


def taken_dtypes(loss: impls.Loss, device: str) -> tuple[str, ...]:
    """The dtypes in which the loss of a stranger, who declares nothing, does not raise.

    All dtypes if it raises in each: then the tests say why.
    """
    taken = []
    for dtype in loss.support.dtypes:
        one = replace(loss, support=replace(loss.support, devices=(device,), dtypes=(dtype,)))
        try:
            loss.fn(**Case().fit(one).tensors(one))
        except Exception:
            continue
        taken.append(dtype)
    return tuple(taken) or loss.support.dtypes
