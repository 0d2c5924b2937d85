"""Defines the base of the asv suites: times, bytes and error of each loss of one level."""

import ast
import functools
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from asv_runner.benchmarks.mark import SkipNotImplemented

import impls
from benchmarks import ROOT
from benchmarks.measure import memory, timers
from benchmarks.measure.availability import Unmeasurable, check_timeable, load, tensors
from benchmarks.measure.references import REFERENCES, Reference
from benchmarks.measure.step import Step, describe_excess, step_of
from benchmarks.workloads import workload

Benchmark = TypeVar("Benchmark", bound=Callable[..., Any])


def for_asv(**attributes: str) -> Callable[[Benchmark], Benchmark]:
    """Set attributes that asv reads from a benchmark function, such as its ``unit``."""

    def decorate(benchmark: Benchmark) -> Benchmark:
        vars(benchmark).update(attributes)
        return benchmark

    return decorate


# The name is the one that old results have.
@for_asv(benchmark_name="environment.track_threads", unit="threads", version="1")
def track_threads() -> int:
    """The number of threads that the suites ran with. ``reports`` shows it with their numbers."""
    return torch.get_num_threads()


@functools.cache
def asv_step(
    level: str, impl: str, workload_name: str, dtype: str, device: str
) -> Step | Reference:
    """The step of ``impl``. Raises ``SkipNotImplemented`` if it cannot be measured here."""
    try:
        check_timeable()
        if impl == REFERENCES[level].name:
            return REFERENCES[level](tensors(workload(workload_name), level, dtype, device))
        loss = load(impl, dtype, device)
        return step_of(loss, tensors(workload(workload_name), level, dtype, device))
    except (impls.UnknownImplementation, Unmeasurable) as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        raise SkipNotImplemented(str(reason)) from reason


@functools.cache
def validated(step: Step | Reference, dtype: str) -> Step | Reference:
    """The step, warmed up. Raises ``ArithmeticError`` if its gradients are wrong."""
    if isinstance(step, Step):
        excess = describe_excess(step.errors_and_budgets(step.expected(), dtype))
        if excess:
            raise ArithmeticError(f"{step.name}: {excess}")
    step.forward_backward()
    return step


def is_importable(file: Path) -> bool:
    """Whether the packages that the file imports are installed.

    The file itself is not imported. asv would start a process for each cell only to skip it, so
    losses that its environment cannot import are left out of the parameters.
    """
    return all(importlib.util.find_spec(package) for package in packages(file))


def packages(file: Path) -> set[str]:
    """The packages that a file of ``impls`` imports, directly or through another file of it."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module).split(".")
            names.add(module[0])
            for alias in node.names:
                ours = ROOT.joinpath(*module, alias.name).with_suffix(".py")
                names |= packages(ours) if module[0] == "impls" and ours.is_file() else set()
    return names


# The workloads and dtypes that asv measures. BENCHMARK_PROFILE in the environment names a profile.
PROFILES = {
    "quick": (["gpt2_text@256"], ["float32"]),
    "regular": (["gpt2_text@256", "gpt2_text"], ["float32", "bfloat16"]),
    "large": (["gpt2_text", "llama3_8b", "gemma2_2b", "qwen2_5_7b"], ["float32", "bfloat16"]),
}


class Suite(ABC):
    """The asv benchmarks of one level on one device: each implementation, workload and dtype.

    Steps come from cached functions, because asv would call a ``setup`` again for every call.
    """

    @property
    @abstractmethod  # so that asv does not list this class itself
    def level(self) -> str: ...

    device = "cpu"
    params: ClassVar[list[list[str]]]
    param_names: ClassVar = ["impl", "workload", "dtype"]
    # A call takes a millisecond or more, so a sample is one call. The first call is the warm-up.
    number = 1
    repeat = (5, 100, 1.5)  # samples at least, samples at most, seconds at most
    rounds = 1
    timeout = 600.0
    # Raised by hand when what is measured changes. By default asv hashes the source.
    version = "1"

    def __init_subclass__(cls) -> None:
        # The names come from the working tree, whatever commit is under test: asv's parameters must
        # not change from commit to commit. asv skips an implementation that the commit lacks.
        level: str = cls.level  # type: ignore[assignment]  # a property here, a string in a suite
        folder = ROOT / "impls"
        names = [
            name
            for name in impls.names(folder)
            if name.startswith(f"{level}.")
            and is_importable(folder.joinpath(*name.split(".")).with_suffix(".py"))
        ]
        profile = os.environ.get("BENCHMARK_PROFILE", "quick")
        if profile not in PROFILES:
            sys.exit(f"BENCHMARK_PROFILE is {profile!r}: it must be one of {', '.join(PROFILES)}")
        workloads, dtypes = PROFILES[profile]
        cls.params = [[*names, REFERENCES[level].name], workloads, dtypes]

    def step(self, impl: str, workload: str, dtype: str) -> Step | Reference:
        return asv_step(self.level, impl, workload, dtype, self.device)

    def time_forward(self, impl, workload, dtype):
        validated(self.step(impl, workload, dtype), dtype).forward()
        timers.synchronize(self.device)

    def time_forward_backward(self, impl, workload, dtype):
        validated(self.step(impl, workload, dtype), dtype).forward_backward()
        timers.synchronize(self.device)

    @for_asv(unit="bytes")
    def track_peak_memory(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            return step.gradient_bytes()
        return memory.peak_memory(step.forward_backward, self.device)

    @for_asv(unit="bytes")
    def track_saved_memory(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            raise SkipNotImplemented("a reference saves nothing")
        return memory.saved_memory(step.forward, self.device)

    @for_asv(unit="relative")
    def track_error(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            raise SkipNotImplemented("a reference computes no loss")
        return step.errors(step.expected())[0]
