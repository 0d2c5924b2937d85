"""The base of the asv suites: a step's times, bytes and error, for each loss of a level."""

import ast
import functools
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from asv_runner.benchmarks.mark import SkipNotImplemented

import impls
from benchmarks import ROOT
from benchmarks.measure import memory, timers
from benchmarks.measure.availability import Unmeasurable, check_timeable, load, tensors
from benchmarks.measure.references import REFERENCES, Reference
from benchmarks.measure.step import Step, describe_excess, step_of
from benchmarks.workloads import workload


@functools.cache
def asv_step(
    level: str, impl: str, workload_name: str, dtype: str, device: str
) -> Step | Reference:
    """The step of ``impl``, or asv's way to skip it."""
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
    """Whether the packages that the file imports are installed: in asv's environment, the pinned.

    Found without importing it, as each cell to be skipped would cost asv a process of its own.
    """
    return all(importlib.util.find_spec(package) for package in packages(file))


def packages(file: Path) -> set[str]:
    """The packages that a file of ``impls`` imports, by itself or by another file of it."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module).split(".")
            found.add(module[0])
            for alias in node.names:
                ours = ROOT.joinpath(*module, alias.name).with_suffix(".py")
                found |= packages(ours) if module[0] == "impls" and ours.is_file() else set()
    return found


# Which workloads and dtypes asv measures: BENCHMARK_PROFILE names one of these.
PROFILES = {
    "quick": (["gpt2_text@256"], ["float32"]),
    "regular": (["gpt2_text@256", "gpt2_text"], ["float32", "bfloat16"]),
    "large": (["gpt2_text", "llama3_8b", "gemma2_2b", "qwen2_5_7b"], ["float32", "bfloat16"]),
}


class Suite(ABC):
    """The asv benchmarks of one level on one device: each implementation, workload and dtype.

    Steps come from cached functions, not from a ``setup``, which asv redoes for every call.
    """

    @property
    @abstractmethod
    def level(self) -> str: ...

    device = "cpu"
    params: ClassVar[list[list[str]]]
    param_names: ClassVar = ["impl", "workload", "dtype"]
    # A call takes a millisecond or more, so a sample is one call, and the first is the warm-up.
    number = 1
    repeat = (5, 100, 1.5)  # samples at least, at most, and within how many seconds
    rounds = 1
    timeout = 600.0

    def __init_subclass__(cls) -> None:
        # asv's parameters must not change from commit to commit, so these are the working tree's,
        # whatever the commit under test holds: it skips an implementation that it lacks.
        folder = ROOT / "impls"
        names = [
            name
            for name in impls.names(folder)
            if name.startswith(f"{cls.level}.")
            and is_importable(folder.joinpath(*name.split(".")).with_suffix(".py"))
        ]
        profile = os.environ.get("BENCHMARK_PROFILE", "quick")
        if profile not in PROFILES:
            sys.exit(f"BENCHMARK_PROFILE is {profile!r}: it must be one of {', '.join(PROFILES)}")
        workloads, dtypes = PROFILES[profile]
        cls.params = [[*names, REFERENCES[cls.level].name], workloads, dtypes]

    def step(self, impl: str, workload: str, dtype: str) -> Step | Reference:
        return asv_step(self.level, impl, workload, dtype, self.device)

    def time_forward(self, impl, workload, dtype):
        validated(self.step(impl, workload, dtype), dtype).forward()
        timers.synchronize(self.device)

    def time_forward_backward(self, impl, workload, dtype):
        validated(self.step(impl, workload, dtype), dtype).forward_backward()
        timers.synchronize(self.device)

    def track_peak_memory(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            return step.gradient_bytes()
        return memory.peak_memory(step.forward_backward, self.device)

    def track_saved_memory(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            raise SkipNotImplemented("a reference saves nothing")
        return memory.saved_memory(step.forward, self.device)

    def track_error(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, Reference):
            raise SkipNotImplemented("a reference computes no loss")
        return step.errors(step.expected())[0]

    track_peak_memory.unit = track_saved_memory.unit = "bytes"
    track_error.unit = "relative"
    # Set by hand, raised when what is measured changes: asv would else hash the source.
    time_forward.version = time_forward_backward.version = "1"
    track_peak_memory.version = track_saved_memory.version = track_error.version = "1"
