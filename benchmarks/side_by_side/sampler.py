"""One sample: the time of one call of one pass of a step, or what the call sent."""

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.environment import gpu_state
from benchmarks.measure import collectives, timers
from benchmarks.measure.references import Reference
from benchmarks.measure.step import PASSES, ShardedStep, Step
from benchmarks.ranks import torchrun


class Sample(NamedTuple):
    impl: str
    metric: str
    value: float  # milliseconds, or a share
    card: gpu_state.Reading | None = None  # the GPU's state right after, where it is known


class Sampler:
    """Times one call of one pass of a step: by the CPU's clock, or by the GPU's."""

    def __init__(self, steps: Mapping[str, Step | Reference], device: str) -> None:
        self.steps, self.device = steps, device
        self.events = timers.EventTimer() if device == "cuda" else None
        self.card = gpu_state.card(device)
        self.launches: dict[tuple[str, str], float] = {}  # the host's milliseconds for each pass
        self.random = random.Random(0)  # the same numbers on each rank

    def extras(self, name: str) -> list[str]:
        """What is measured of both passes together, beside their time."""
        step = self.steps[name]
        launch = ["launch"] if self.events and isinstance(step, Step) else []
        several_ranks = torchrun.world_size() > 1 and isinstance(step, ShardedStep)
        return launch + (["communication"] if several_ranks else [])

    def prepare(self, name: str, pass_: str) -> None:
        """On a GPU, measure how long the host needs to launch a pass. A first call may compile."""
        if self.events and pass_ in PASSES:
            self.call_of(name, pass_)()
            self.launches[name, pass_] = timers.launch(self.call_of(name, pass_))

    def take(self, name: str, pass_: str) -> list[Sample]:
        """Make one call. Return a sample of each metric that the call gives.

        Before the call two rows of the input change places, so it cannot use an earlier result.
        """
        step = self.steps[name]
        if isinstance(step, Step):
            step.swap_rows(self.two_rows(step))
        if pass_ == "communication":
            run = step.forward_backward
            seconds, hidden = collectives.communication(run, self.device)
            overlap = [] if hidden is None else [Sample(name, "overlap", hidden)]
            return [Sample(name, pass_, 1e3 * seconds), *overlap]
        if pass_ == "launch":
            value = timers.launch(step.forward_backward)
        else:
            value = self.milliseconds(name, pass_, self.call_of(name, pass_))
        return [Sample(name, pass_, value, self.card.try_read() if self.card else None)]

    def two_rows(self, step: Step) -> tuple[int, int]:
        rows = range(len(step.given["target"]))
        one, other = self.random.sample(rows, 2) if len(rows) > 1 else (0, 0)
        return one, other

    def milliseconds(self, name: str, pass_: str, call: Callable[[], Any]) -> float:
        if self.events:
            return self.events.milliseconds(call, self.launches[name, pass_])
        return 1e3 * timers.seconds(call, self.device)

    def results(self, name: str, pass_: str) -> list[tuple[str, Tensor]]:
        """What a timed call returns: the type of each tensor, and a copy.

        The call itself copies, so work that a loss left for later is not in the copy.
        """
        call, kept = self.call_of(name, pass_), []

        def copy() -> None:
            result = call()
            for tensor in result if isinstance(result, tuple) else [result]:
                kept.append((type(tensor).__name__, tensor.detach().clone()))

        self.milliseconds(name, pass_, copy)
        return kept

    def call_of(self, name: str, pass_: str) -> Callable[[], Any]:
        """The call to time. Before a "backward", this runs the forward, which is not timed."""
        step = self.steps[name]
        if pass_ != "backward":
            return getattr(step, pass_)
        loss: Any = step.forward()
        return lambda: step.backward(loss)
