"""Defines the base of the asv suites: times, bytes and error of each loss of one level."""

import ast
import functools
import importlib.util
import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from asv_runner.benchmarks.mark import SkipNotImplemented

import impls
from benchmarks import ROOT
from benchmarks.environment.variables import allocator
from benchmarks.measure import timers
from benchmarks.measure.availability import Unmeasurable, check_timeable, load, tensors
from benchmarks.measure.references import REFERENCES, Reference
from benchmarks.measure.step import Step, step_of
from benchmarks.side_by_side import rounds
from benchmarks.workloads import workload

Benchmark = TypeVar("Benchmark", bound=Callable[..., Any])


def for_asv(**attributes: Any) -> Callable[[Benchmark], Benchmark]:
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


# asv records the torch version and the allocator of an environment that it builds, but not of an
# environment that exists already. So the next two benchmarks record them.
@for_asv(benchmark_name="environment.track_torch", unit="major, minor, patch", version="1")
def track_torch() -> int:
    """torch's version as one number: 2.13.0 is 2013000."""
    major, minor, patch = map(int, torch.__version__.partition("+")[0].split(".")[:3])
    return (1000 * major + minor) * 1000 + patch


@for_asv(benchmark_name="environment.track_pinned_allocator", unit="1 or 0", version="1")
def track_pinned_allocator() -> int:
    """Whether glibc's allocator keeps large blocks."""
    return int(allocator() == "pinned")


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
    "history": (["gpt2_text@256"], ["float32", "bfloat16"]),
    "gpu": (["llama3_8b@2048"], ["bfloat16"]),
    "rehearsal": (["tinystories_1m@8"], ["float32"]),
}
PROFILE = os.environ.get("BENCHMARK_PROFILE", "quick")
if PROFILE not in PROFILES:
    sys.exit(f"BENCHMARK_PROFILE is {PROFILE!r}: it must be one of {', '.join(PROFILES)}")

# BENCHMARK_LOSSES in the environment names the losses to measure, with commas; without it, all are.
CHOSEN = set(filter(None, os.environ.get("BENCHMARK_LOSSES", "").split(",")))
# It takes fifteen times as long as the others: more than half of each round.
LEFT_OUT = {"linear.torch_chunked"} if PROFILE == "quick" else set()

TIMED = ("forward", "forward_backward")
TIMED_BY_ASV = ("regular", "large")  # profiles in which asv times each cell itself too


@contextmanager
def stderr_at_once() -> Iterator[None]:
    """Write stderr to the file that BENCHMARK_STDERR in the environment names, if it names a file.

    asv keeps what ``setup_cache`` prints to itself. `make bench` shows the file as it grows.
    """
    if file := os.environ.get("BENCHMARK_STDERR"):
        with open(file, "a", buffering=1, encoding="utf-8") as stderr, redirect_stderr(stderr):
            yield
    else:
        yield


# What one level gives: for each (implementation, workload, dtype) its metrics. The value of a time
# is the list of its samples.
Numbers = dict[tuple[str, str, str], dict[str, Any]]


class Suite(ABC):
    """The asv benchmarks of one level on one device: each implementation, workload and dtype.

    asv calls ``setup_cache`` once for a commit. It measures all implementations in turn, round by
    round, in one process, and the benchmarks only report its numbers. Each suite defines
    ``setup_cache`` itself: asv tells two of them apart by the line on which they begin.
    """

    @property
    @abstractmethod  # so that asv does not list this class itself
    def level(self) -> str: ...

    device = "cpu"
    params: ClassVar[list[list[str]]]
    param_names: ClassVar = ["impl", "workload", "dtype"]
    # Increase this by hand when the measured work changes. By default asv hashes the source.
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
        cls.params = [[*names, REFERENCES[level].name], *PROFILES[PROFILE]]
        if PROFILE not in TIMED_BY_ASV or level == "sharded":
            cls.time_forward = cls.time_forward_backward = None  # type: ignore[assignment]

    @stderr_at_once()
    def measure(self, params: list[list[str]] | None = None) -> Numbers:
        """All that the benchmarks report. An implementation that cannot run here has no numbers."""
        numbers: Numbers = {}
        names, workloads, dtypes = params or self.params
        for name, dtype in itertools.product(workloads, dtypes):
            try:
                check_timeable()
                left_out = set() if CHOSEN else LEFT_OUT & {*names}
                chosen = [loss for loss in names if loss in (CHOSEN or {*names} - left_out)]
                for loss in left_out:
                    print(f"skipped: {loss} takes too long for {PROFILE}", file=sys.stderr)
                losses = list(loadable(chosen, dtype, self.device))
                inputs = tensors(workload(name), self.level, dtype, self.device)
            except Unmeasurable as reason:
                print(f"skipped: {reason}", file=sys.stderr)
                continue
            if not losses:  # the commit has none of this level
                continue
            for row in rounds.measure(losses, inputs, dtype, self.device, TIMED):
                of_cell = numbers.setdefault((row["impl"], name, dtype), {"noisy": 0})
                of_cell[row["metric"]] = row["samples"] if "samples" in row else row["value"]
                of_cell["noisy"] += row.get("noisy", 0)
        return numbers

    @for_asv(unit="ms")
    def track_forward(self, numbers, *cell):
        return samples_of(numbers, "forward", cell)

    @for_asv(unit="ms")
    def track_forward_backward(self, numbers, *cell):
        return samples_of(numbers, "forward_backward", cell)

    @for_asv(unit="× reference")
    def track_forward_multiple(self, numbers, *cell):
        return self.multiples(numbers, "forward", cell)

    @for_asv(unit="× reference")
    def track_forward_backward_multiple(self, numbers, *cell):
        return self.multiples(numbers, "forward_backward", cell)

    def multiples(self, numbers: Numbers, metric: str, cell: tuple[str, ...]) -> Any:
        """The ratios of the samples to those of the reference, within rounds."""
        _, *rest = cell
        times = number_of(numbers, metric, cell)
        base = number_of(numbers, metric, (REFERENCES[self.level].name, *rest))
        if len(times) != len(base):
            raise SkipNotImplemented("some rounds are missing")
        ratios = [time / reference for time, reference in zip(times, base, strict=True)]
        return {"samples": ratios, "number": 1}

    @for_asv(unit="count")
    def track_noisy(self, numbers, *cell):
        """How many of the cell's times did not pass their checks."""
        return number_of(numbers, "noisy", cell)

    @for_asv(unit="bytes")
    def track_peak_memory(self, numbers, *cell):
        return number_of(numbers, "peak_memory", cell)

    @for_asv(unit="bytes")
    def track_saved_memory(self, numbers, *cell):
        return number_of(numbers, "saved_memory", cell)

    @for_asv(unit="relative")
    def track_error(self, numbers, *cell):
        return number_of(numbers, "error", cell)

    # asv's own timing, one cell after the other.
    number = 1
    repeat = (5, 100, 1.5)  # samples at least, samples at most, seconds at most
    rounds = 1
    timeout = 600.0

    def time_forward(self, numbers, *cell):
        self.step(numbers, cell).forward()
        timers.synchronize(self.device)

    def time_forward_backward(self, numbers, *cell):
        self.step(numbers, cell).forward_backward()
        timers.synchronize(self.device)

    def step(self, numbers: Numbers, cell: tuple[str, ...]) -> Step | Reference:
        number_of(numbers, "forward", cell)  # a loss that has no time there has none here
        return warm_step(self.level, self.device, *cell)


@functools.cache
def warm_step(level: str, device: str, impl: str, name: str, dtype: str) -> Step | Reference:
    """The step of ``impl``, called once."""
    inputs = tensors(workload(name), level, dtype, device)
    is_reference = impl == REFERENCES[level].name
    step = REFERENCES[level](inputs) if is_reference else step_of(load(impl, dtype, device), inputs)
    step.forward_backward()
    return step


def loadable(names: Sequence[str], dtype: str, device: str) -> Iterator[impls.Loss]:
    """Yield the losses among ``names`` that run here. Print a line for each other loss."""
    for name in names:
        if name.endswith(".reference"):
            continue
        try:
            yield load(name, dtype, device)
        except (impls.UnknownImplementation, Unmeasurable) as reason:
            print(f"skipped: {reason}", file=sys.stderr)


def number_of(numbers: Numbers, metric: str, cell: tuple[str, ...]) -> Any:
    """The number of a cell. Raises ``SkipNotImplemented`` if the cell was not measured.

    Raises ``ArithmeticError`` if it has no time because its gradients are wrong or it raised.
    """
    impl, name, dtype = cell
    found = numbers.get((impl, name, dtype))
    if found is None or (metric not in found and impl.endswith(".reference")):
        raise SkipNotImplemented(f"{impl} has no {metric} here")
    if metric not in found:
        raise ArithmeticError(f"{impl} failed, or its gradients are wrong: it has no {metric}")
    return found[metric]


def samples_of(numbers: Numbers, metric: str, cell: tuple[str, ...]) -> dict[str, Any]:
    """The samples of a time, in the form in which asv keeps samples."""
    return {"samples": number_of(numbers, metric, cell), "number": 1}
