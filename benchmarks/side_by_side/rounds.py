"""Times the losses of one level in turn, round after round, so all share the machine's noise."""

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
from benchmarks.measure.references import REFERENCES, Reference, ShardedReference
from benchmarks.measure.step import PASSES, ShardedStep, Step, describe_excess, step_of
from benchmarks.ranks import torchrun
from benchmarks.side_by_side.failures import DeviceLost, Failures

ROUNDS = (9, 60)  # at least, at most
# How long the rounds may take, after the least number. A GPU's samples scatter by less than 1 %.
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
    """Rows (impl, metric, unit, value, ci_low, ci_high, n) of one level's losses and its reference.

    The row of a time also has the samples, in the order in which they were taken, and the state of
    the GPU.

    First calls, errors and memory come first, each as soon as it is measured. The times of all
    losses follow. Ctrl-C or ``DeviceLost`` ends the rounds: the rows of the samples so far come
    first, then the exception. A loss whose gradients are wrong has no times. A loss that raises has
    a row "failed" and no further numbers.

    All ranks measure a sharded loss in lock step, and each of them gets the same rows.
    """
    failures = Failures(device)

    def first_call(loss: impls.Loss) -> Iterator[Row]:
        step = step_of(loss, tensors)
        yield exact_row(loss.name, "first_call", "s", timers.seconds(step.forward_backward, device))

    yield from rows_of_each("first calls", losses, failures, first_call)
    correct = yield from errors_and_memory(losses, tensors, dtype, failures)
    memory.free_cache(device)
    reference = REFERENCES[losses[0].level](tensors)
    yield exact_row(reference.name, "peak_memory", "bytes", reference.gradient_bytes())
    if isinstance(reference, ShardedReference):
        yield exact_row(reference.name, "sent", "bytes", reference.sent_bytes())
        yield exact_row(reference.name, "collectives", "count", reference.collectives)
    steps: dict[str, Step | Reference] = {reference.name: reference}
    for loss in correct:
        if step := failures.attempt(loss.name, step_of, loss, tensors):
            steps[loss.name] = step
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    interruption = None
    sampler = Sampler(steps, device)
    try:
        for sample in take_rounds(sampler, passes, failures):
            samples[sample.impl, sample.metric].append(sample)
    except (KeyboardInterrupt, DeviceLost) as error:
        interruption = error
    yield from (sampled_row(samples[cell], sampler.card) for cell in sorted(samples))
    yield from (exact_row(name, "failed", "count", 1) for name in sorted(failures.names))
    if interruption is not None:
        raise interruption


def rows_of_each(
    title: str,
    losses: Sequence[impls.Loss],
    failures: Failures,
    rows_of: Callable[[impls.Loss], Iterator[Row]],
) -> Iterator[Row]:
    """The rows of each loss. If a loss raises, its rows so far count."""
    with tqdm(losses, desc=title, leave=False) as bar:
        for loss in bar:
            bar.set_postfix_str(loss.name)
            memory.free_cache(failures.device)
            rows: list[Row] = []
            failures.attempt(loss.name, rows.extend, rows_of(loss))
            yield from rows


def errors_and_memory(
    losses: Sequence[impls.Loss], tensors: Mapping[str, Tensor], dtype: str, failures: Failures
) -> Generator[Row, None, list[impls.Loss]]:
    """Yield the rows of what has no noise. Return the losses whose gradients are right."""
    # The oracle and the builtin loss give these. They are the same for all losses.
    first = step_of(losses[0], tensors)
    expected = first.expected()
    budgets = first.budgets(expected, dtype)
    del first
    correct = []

    def rows_of(loss: impls.Loss) -> Iterator[Row]:
        step = step_of(loss, tensors)
        errors = step.errors(expected)
        yield exact_row(loss.name, "error", "relative", errors[0])
        yield from memory_rows(step, failures.device)
        if excess := describe_excess(zip(errors, budgets, strict=True)):
            tqdm.write(f"{loss.name}: {excess}: no times")
        else:
            correct.append(loss)

    yield from rows_of_each("error, memory", losses, failures, rows_of)
    return correct


def memory_rows(step: Step, device: str) -> Iterator[Row]:
    """The bytes that a step allocates and, if it is sharded, sends."""
    peak = memory.peak_memory(step.forward_backward, device)
    yield exact_row(step.name, "peak_memory", "bytes", peak)
    yield exact_row(step.name, "saved_memory", "bytes", memory.saved_memory(step.forward, device))
    if device == "cuda":
        reserved = memory.reserved_memory(step.forward_backward)
        yield exact_row(step.name, "reserved_memory", "bytes", reserved)
    if isinstance(step, ShardedStep):
        sent, count = collectives.sent(step.forward_backward, device)
        yield exact_row(step.name, "sent", "bytes", sent)
        yield exact_row(step.name, "collectives", "count", count)


def take_rounds(sampler: "Sampler", passes: Sequence[str], failures: Failures) -> Iterator[Sample]:
    """Sample each pass of each step once a round. Each round has a random order.

    A step that raises is left out from then on.
    """
    cells = [(name, pass_) for name in sampler.steps for pass_ in passes]
    if "forward_backward" in passes:
        cells += [(name, extra) for name in sampler.steps for extra in sampler.extras(name)]
    for cell in cells:
        failures.attempt(cell[0], sampler.prepare, *cell)
    start = time.monotonic()
    for cell in cells:
        failures.attempt(cell[0], sampler.take, *cell)
    least, most = ROUNDS
    fitting = int(SECONDS[sampler.device] / torchrun.largest(time.monotonic() - start))
    order = random.Random(0)
    for _ in tqdm(range(max(least, min(most, fitting))), desc="rounds", leave=False):
        for cell in order.sample(cells, len(cells)):
            yield from failures.attempt(cell[0], sampler.take, *cell) or []


class Sampler:
    """Times one call of one pass of a step: by the CPU's clock, or by the GPU's."""

    def __init__(self, steps: Mapping[str, Step | Reference], device: str) -> None:
        self.steps, self.device = steps, device
        self.events = timers.EventTimer() if device == "cuda" else None
        self.card = gpu_state.card(device)
        self.launches: dict[tuple[str, str], float] = {}  # the host's milliseconds for each pass

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
        """Make one call. Return a sample of each metric that the call gives."""
        if pass_ == "communication":
            run = self.steps[name].forward_backward
            seconds, hidden = collectives.communication(run, self.device)
            overlap = [] if hidden is None else [Sample(name, "overlap", hidden)]
            return [Sample(name, pass_, 1e3 * seconds), *overlap]
        if pass_ == "launch":
            value = timers.launch(self.steps[name].forward_backward)
        elif self.events:
            value = self.events.milliseconds(self.call_of(name, pass_), self.launches[name, pass_])
        else:
            value = 1e3 * timers.seconds(self.call_of(name, pass_), self.device)
        return [Sample(name, pass_, value, self.card.try_read() if self.card else None)]

    def call_of(self, name: str, pass_: str) -> Callable[[], Any]:
        """The call to time. Before a "backward", this runs the forward, which is not timed."""
        step = self.steps[name]
        if pass_ != "backward":
            return getattr(step, pass_)
        loss: Any = step.forward()
        return lambda: step.backward(loss)


def exact_row(impl: str, metric: str, unit: str, value: float) -> Row:
    """The row of a quantity that has no noise."""
    cell = {"impl": impl, "metric": metric, "unit": unit}
    return cell | {"value": value, "ci_low": value, "ci_high": value, "n": 1}


def sampled_row(samples: Sequence[Sample], card: gpu_state.Card | None) -> Row:
    """The row of a time or a share: the median of the samples, with a 95 % interval.

    Samples taken while the card throttled are left out, if at least ``ROUNDS[0]`` others remain.
    """
    from reports.analysis.intervals import median_interval

    impl, metric = samples[0].impl, samples[0].metric
    cool = [sample for sample in samples if not (sample.card and sample.card.throttled)]
    values = [sample.value for sample in (cool if len(cool) >= ROUNDS[0] else samples)]
    value, low, high = median_interval(values)
    cell = {"impl": impl, "metric": metric, "unit": "share" if metric == "overlap" else "ms"}
    interval = {"value": value, "ci_low": low, "ci_high": high}
    listed = " ".join(f"{value:.5g}" for value in values)
    readings = [sample.card for sample in samples if sample.card]
    state = card.describe(readings) if card and readings else ""
    return cell | interval | {"n": len(values), "samples": listed, "gpu_state": state}


def append_rows(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each row after it is written to the CSV at ``path``.

    A file that has a header keeps its columns, because an older version may have written it.
    """
    from reports.readers.results import COLUMNS

    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        columns = header or [*COLUMNS, "text", "samples", "gpu_state"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        for row in rows:
            if not header:  # with the first row: a run that measures nothing leaves no header
                writer.writeheader()
                header = columns
            writer.writerow(row)
            file.flush()
            yield row
