"""What every asv suite shares: one loss on one workload's tensors, its parameters, what to skip."""

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from asv_runner.benchmarks.mark import SkipNotImplemented
from torch import Tensor

import impls
from benchmarks import meters, oracle
from benchmarks.workloads import Workload, free_bytes, workload


class Step:
    """The loss in a training step, mean over the tokens: ``forward()``, then ``backward(loss)``."""

    def __init__(self, loss: impls.Loss, tensors: Mapping[str, Tensor]):
        self.loss = loss
        self.tensors = tensors
        self.leaves = [
            tensors[name].requires_grad_() for name in oracle.DIFFERENTIABLE if name in tensors
        ]
        # Not one: an implementation that ignores the upstream gradient must show.
        self.grad = torch.full((), 0.75, dtype=self.leaves[0].dtype, device=self.leaves[0].device)

    def forward(self) -> Tensor:
        return self.loss.fn(**self.tensors)

    def backward(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.leaves, self.grad)

    def forward_backward(self) -> tuple[Tensor, ...]:
        return self.backward(self.forward())

    def expected(self) -> dict[str, Tensor]:
        """The oracle's value and gradients for these tensors."""
        return oracle.evaluate(oracle.ORACLES[self.loss.level], self.tensors, self.grad)

    def error(self, expected: Mapping[str, Tensor]) -> float:
        """The largest relative error of a gradient."""
        actual = oracle.evaluate(self.loss.fn, self.tensors, self.grad)
        return max(
            oracle.error(actual[name], expected[name])
            for name in oracle.DIFFERENTIABLE
            if name in actual
        )


class Unmeasurable(Exception):
    """What was asked for cannot be measured here; the message says why."""


def load(name: str, dtype: str, device: str) -> impls.Loss:
    """The implementation ``name``. Raises ``Unmeasurable`` if it does not run on this dtype or device."""
    try:
        loss = impls.load(name)
    except impls.Unavailable as error:
        raise Unmeasurable(f"{name} {error}") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise Unmeasurable("there is no CUDA device here")
    for kind, wanted, supported in (
        ("device", device, loss.support.devices),
        ("dtype", dtype, loss.support.dtypes),
    ):
        if wanted not in supported:
            raise Unmeasurable(f"{name} does not support {kind} {wanted}, only {', '.join(supported)}")
    return loss


def tensors(found: Workload, level: str, dtype: str, device: str) -> dict[str, Tensor]:
    """The workload's tensors. Raises ``Unmeasurable`` if measuring them would not fit in free memory."""
    needed, free = found.bytes_needed(level, dtype), free_bytes(device)
    if needed > free:
        raise Unmeasurable(
            f"{found.name} in {dtype} at level {level} needs up to {needed / 2**30:.1f} GiB on {device}, "
            f"{free / 2**30:.1f} GiB are free; {found.name.partition('@')[0]}@N takes N tokens"
        )
    return found.tensors(level, dtype, device)


@functools.cache
def measurable(level: str, impl: str, workload_name: str, dtype: str, device: str) -> Step:
    """A step of ``impl``, or asv's way to skip it."""
    try:
        loss = load(impl, dtype, device)
        return Step(loss, tensors(workload(workload_name), level, dtype, device))
    except (impls.UnknownImplementation, Unmeasurable) as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        raise SkipNotImplemented(str(reason)) from reason


@functools.cache
def right(step: Step, dtype: str) -> Step:
    """The step itself, warmed up, if its gradients are right: a wrong one has no time.

    Raises ``ArithmeticError`` if they are not.
    """
    found = step.error(step.expected())
    if not found <= oracle.TOLERANCE[dtype]:
        raise ArithmeticError(
            f"{step.loss.name}: relative error of the gradients is {found:.2g}, "
            f"above {oracle.TOLERANCE[dtype]:.2g} for {dtype}"
        )
    step.forward_backward()
    return step


class Suite(ABC):
    """The asv benchmarks of one level on one device: each implementation, workload and dtype.

    Steps come from cached functions, not from a ``setup``, which asv redoes for every call.
    """

    @property
    @abstractmethod
    def level(self) -> str: ...

    device = "cpu"
    param_names = ["impl", "workload", "dtype"]
    # A call takes a millisecond or more, so a sample is one call, and the first is the warm-up.
    number = 1
    repeat = (7, 100, 3.0)  # samples at least, at most, within seconds
    rounds = 1
    timeout = 600.0

    def __init_subclass__(cls):
        # asv's parameters must not change from commit to commit, so this lists the working tree,
        # whatever the commit under test holds: it skips an implementation that it lacks.
        here = impls.names(Path(__file__).parents[1] / "impls")
        cls.params = [
            [name for name in here if name.startswith(f"{cls.level}.")],
            ["gpt2_text@256", "gpt2_text", "llama3_8b", "gemma2_2b", "qwen2_5_7b"],
            ["float32", "bfloat16"],
        ]

    def step(self, impl: str, workload: str, dtype: str) -> Step:
        return measurable(self.level, impl, workload, dtype, self.device)

    def time_forward(self, impl, workload, dtype):
        right(self.step(impl, workload, dtype), dtype).forward()
        meters.synchronize(self.device)

    def time_forward_backward(self, impl, workload, dtype):
        right(self.step(impl, workload, dtype), dtype).forward_backward()
        meters.synchronize(self.device)

    def track_peak_memory(self, impl, workload, dtype):
        return meters.peak_memory(self.step(impl, workload, dtype).forward_backward, self.device)

    def track_saved_memory(self, impl, workload, dtype):
        return meters.saved_memory(self.step(impl, workload, dtype).forward, self.device)

    def track_error(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        return step.error(step.expected())

    for benchmark in (track_peak_memory, track_saved_memory):
        benchmark.unit = "bytes"
    track_error.unit = "relative"
    # Set by hand, and raised when what a benchmark measures changes: asv else hashes its source.
    for benchmark in (time_forward, time_forward_backward, track_peak_memory, track_saved_memory):
        benchmark.version = "1"
    track_error.version = "1"
    del benchmark
