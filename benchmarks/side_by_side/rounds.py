"""Now, in one process: implementations timed in turn, round after round, so noise is shared."""

import csv
import random
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

import impls
from benchmarks.environment import gpu_state
from benchmarks.measure import collectives, memory, timers
from benchmarks.measure.references import LIMITS, Limit, ShardedLimit
from benchmarks.measure.step import PASSES, ShardedStep, Step, step_of
from benchmarks.ranks import torchrun
from benchmarks.side_by_side.failures import DeviceLost, Failures

ROUNDS = (9, 60)  # at least, at most
# That the rounds may take, once there are enough. A GPU's samples scatter by less than 1 %.
SECONDS = {"cpu": 20.0, "cuda": 8.0}

Row = dict[str, Any]


class Sample(NamedTuple):
    impl: str
    metric: str
    value: float  # milliseconds, or a share
    card: gpu_state.Reading | None = None  # the GPU's state right after, where it is known


def measure(
    losses: Sequence[impls.Loss],
    tensors: Mapping[str, Tensor],
    dtype: str,
    device: str,
    passes: Sequence[str],
) -> Iterator[Row]:
    """Rows (impl, metric, unit, value, ci_low, ci_high, n) of one level's losses and of its limit.

    A time has its samples too, in the order in which they were taken, and the state of the GPU.

    First calls, error and memory come first, as each is measured, then the times of all. Ctrl-C
    ends the rounds: it is raised after the times of those so far, as is ``DeviceLost``. A loss
    whose gradients are wrong has no times. A loss that raises has a row "failed", and no more
    numbers.

    A sharded one is measured by all ranks in lock step, of which each gets the same rows.
    """
    failures = Failures(device)

    def first_call(loss: impls.Loss) -> Iterator[Row]:
        step = step_of(loss, tensors)
        yield exact(loss.name, "first_call", "s", timers.seconds(step.forward_backward, device))

    yield from each("first calls", losses, failures, first_call)
    right = yield from errors_and_memory(losses, tensors, dtype, failures)
    memory.free_cache(device)
    limit = LIMITS[losses[0].level](tensors)
    yield exact(limit.name, "peak_memory", "bytes", limit.gradient_bytes())
    if isinstance(limit, ShardedLimit):
        yield exact(limit.name, "sent", "bytes", limit.sent_bytes())
        yield exact(limit.name, "collectives", "count", limit.collectives)
    steps: dict[str, Step | Limit] = {limit.name: limit}
    for loss in right:
        if step := failures.attempt(loss.name, lambda of=loss: step_of(of, tensors)):
            steps[loss.name] = step
    taken: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    interruption = None
    sampler = Sampler(steps, device)
    try:
        for sample in rounds(sampler, passes, failures):
            taken[sample.impl, sample.metric].append(sample)
    except (KeyboardInterrupt, DeviceLost) as error:
        interruption = error
    yield from (sampled(samples, sampler.card) for _, samples in sorted(taken.items()))
    yield from (exact(name, "failed", "count", 1) for name in sorted(failures.names))
    if interruption is not None:
        raise interruption


def each(
    what: str,
    losses: Sequence[impls.Loss],
    failures: Failures,
    rows_of: Callable[[impls.Loss], Iterator[Row]],
) -> Iterator[Row]:
    """The rows of each loss, up to where it raises."""
    with tqdm(losses, desc=what, leave=False) as bar:
        for loss in bar:
            bar.set_postfix_str(loss.name)
            memory.free_cache(failures.device)
            rows: list[Row] = []
            failures.attempt(loss.name, lambda of=loss, to=rows: to.extend(rows_of(of)))
            yield from rows


def errors_and_memory(
    losses: Sequence[impls.Loss], tensors: Mapping[str, Tensor], dtype: str, failures: Failures
) -> Generator[Row, None, list[impls.Loss]]:
    """The rows of what has no noise, and then the losses whose gradients are right."""
    first = step_of(losses[0], tensors)
    expected = first.expected()
    budgets = first.budgets(expected, dtype)
    del first
    right = []

    def rows_of(loss: impls.Loss) -> Iterator[Row]:
        step = step_of(loss, tensors)
        errors = step.errors(expected)
        yield exact(loss.name, "error", "relative", errors[0])
        yield from memory_rows(step, failures.device)
        over = [pair for pair in zip(errors, budgets, strict=True) if not pair[0] <= pair[1]]
        if not over:
            right.append(loss)
        for error, allowed in over:
            tqdm.write(f"{loss.name}: gradients are wrong, {error:.2g} > {allowed:.2g}: no times")

    yield from each("error, memory", losses, failures, rows_of)
    return right


def memory_rows(step: Step, device: str) -> Iterator[Row]:
    """What a step allocates and, if it is a sharded one, sends."""
    peak = memory.peak_memory(step.forward_backward, device)
    yield exact(step.name, "peak_memory", "bytes", peak)
    yield exact(step.name, "saved_memory", "bytes", memory.saved_memory(step.forward, device))
    if device == "cuda":
        reserved = memory.reserved_memory(step.forward_backward)
        yield exact(step.name, "reserved_memory", "bytes", reserved)
    if isinstance(step, ShardedStep):
        sent, count = collectives.sent(step.forward_backward, device)
        yield exact(step.name, "sent", "bytes", sent)
        yield exact(step.name, "collectives", "count", count)


def rounds(sampler: "Sampler", passes: Sequence[str], failures: Failures) -> Iterator[Sample]:
    """Each pass of each step once a round, in an order of its own, until the step raises."""
    cells = [(name, pass_) for name in sampler.steps for pass_ in passes]
    if "forward_backward" in passes:
        cells += [(name, extra) for name in sampler.steps for extra in sampler.extras(name)]
    for name, pass_ in cells:
        failures.attempt(name, lambda cell=(name, pass_): sampler.prepare(*cell))
    start = time.monotonic()
    for name, pass_ in cells:
        failures.attempt(name, lambda cell=(name, pass_): sampler.take(*cell))
    least, most = ROUNDS
    count = max(
        least, min(most, int(SECONDS[sampler.device] / torchrun.largest(time.monotonic() - start)))
    )
    order = random.Random(0)
    for _ in tqdm(range(count), desc="rounds", leave=False):
        for name, pass_ in order.sample(cells, len(cells)):
            taken = failures.attempt(name, lambda cell=(name, pass_): sampler.take(*cell))
            yield from taken or []


class Sampler:
    """Times one call of one pass of a step: on a CPU by its clock, on a GPU by the device's."""

    def __init__(self, steps: Mapping[str, Step | Limit], device: str) -> None:
        self.steps, self.device = steps, device
        self.events = timers.EventTimer() if device == "cuda" else None
        self.card = gpu_state.card(device)
        self.host: dict[tuple[str, str], float] = {}  # milliseconds to launch each pass

    def extras(self, name: str) -> list[str]:
        """What is measured of forward and backward together beside their time."""
        step = self.steps[name]
        launch = ["launch"] if self.events and isinstance(step, Step) else []
        shared = torchrun.world_size() > 1 and isinstance(step, ShardedStep)
        return launch + (["communication"] if shared else [])

    def prepare(self, name: str, pass_: str) -> None:
        """On a GPU, find how long the host needs to launch a pass. It may compile before."""
        if self.events and pass_ in PASSES:
            self.call(name, pass_)()
            self.host[name, pass_] = timers.launch(self.call(name, pass_))

    def take(self, name: str, pass_: str) -> list[Sample]:
        """A sample of each metric that comes of one call."""
        if pass_ == "communication":
            run = self.steps[name].forward_backward
            seconds, hidden = collectives.communication(run, self.device)
            overlap = [] if hidden is None else [Sample(name, "overlap", hidden)]
            return [Sample(name, pass_, 1e3 * seconds), *overlap]
        if pass_ == "launch":
            value = timers.launch(self.steps[name].forward_backward)
        elif self.events:
            value = self.events.milliseconds(self.call(name, pass_), self.host[name, pass_])
        else:
            value = 1e3 * timers.seconds(self.call(name, pass_), self.device)
        return [Sample(name, pass_, value, self.card.try_read() if self.card else None)]

    def call(self, name: str, pass_: str) -> Callable[[], Any]:
        """What is timed. Before a "backward" its forward is made, and not timed."""
        step = self.steps[name]
        if pass_ != "backward":
            return getattr(step, pass_)
        loss: Any = step.forward()
        return lambda: step.backward(loss)


def exact(impl: str, metric: str, unit: str, value: float) -> Row:
    """The row of a quantity that has no noise."""
    cell = {"impl": impl, "metric": metric, "unit": unit}
    return cell | {"value": value, "ci_low": value, "ci_high": value, "n": 1}


def sampled(samples: Sequence[Sample], card: gpu_state.Card | None) -> Row:
    """The row of a time, or of a share: its median, with a 95 % interval.

    Samples that were taken while the card throttled are left out, if enough others are there.
    """
    from reports.analysis.intervals import median_interval

    impl, metric = samples[0].impl, samples[0].metric
    free = [sample for sample in samples if not (sample.card and sample.card.throttled)]
    values = [sample.value for sample in (free if len(free) >= ROUNDS[0] else samples)]
    value, low, high = median_interval(values)
    cell = {"impl": impl, "metric": metric, "unit": "share" if metric == "overlap" else "ms"}
    interval = {"value": value, "ci_low": low, "ci_high": high}
    listed = " ".join(f"{value:.5g}" for value in values)
    readings = [sample.card for sample in samples if sample.card]
    state = card.describe(readings) if card and readings else ""
    return cell | interval | {"n": len(values), "samples": listed, "gpu_state": state}


def append(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """``rows`` again, each written to the CSV at ``path`` before the next is asked for.

    A file that has rows keeps its columns, which an older version may have begun.
    """
    from reports.readers.schema import COLUMNS

    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        begun = next(csv.reader(file), None)
        columns = begun or [*COLUMNS, "samples", "gpu_state"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        for row in rows:
            if not begun:
                writer.writeheader()
                begun = columns
            writer.writerow(row)
            file.flush()
            yield row
