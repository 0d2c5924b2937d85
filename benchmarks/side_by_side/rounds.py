"""Times the losses of one level in turn, round after round, so all share the machine's noise."""

import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence

from torch import Tensor

import impls
from benchmarks.environment import gpu_state
from benchmarks.environment.progress import track
from benchmarks.measure import collectives, memory, timers
from benchmarks.measure.references import REFERENCES, Reference, ShardedReference
from benchmarks.measure.step import PASSES, ShardedStep, Step, describe_excess, step_of
from benchmarks.ranks import torchrun
from benchmarks.side_by_side import refusals
from benchmarks.side_by_side.failures import DeviceLost, Failures
from benchmarks.side_by_side.noise import noisy_times
from benchmarks.side_by_side.rows import Row, exact_row
from benchmarks.side_by_side.sampler import Sample, Sampler

ROUNDS = (7, 60)  # at least, at most
# Seconds that all rounds may take together. The least number of rounds may take longer. A GPU needs
# fewer seconds: its samples scatter by less than 1 %.
SECONDS = {"cpu": 20.0, "cuda": 8.0}

MORE = 3  # rounds from one check of noisy times to the next

OUTSIDE = 2**25  # bytes outside torch's allocator that get a line; oneDNN and MKL hold fewer

Samples = dict[tuple[str, str], list[Sample]]  # by implementation and metric, by round


def measure(
    losses: Sequence[impls.Loss],
    tensors: Mapping[str, Tensor],
    dtype: str,
    device: str,
    passes: Sequence[str],
) -> Iterator[Row]:
    """Rows (impl, metric, unit, value, ci_low, ci_high, n) of one level's losses and its reference.

    The row of a time has (impl, metric, unit, samples, gpu_state, noisy): the samples are a list in
    the order of the rounds. ``rows.with_interval`` adds the rest. Where times fail the checks of
    ``noise``, more rounds follow. Times that still fail are noisy.

    First calls, errors and memory come first, each as soon as it is measured. The times of all
    losses follow. Ctrl-C or ``DeviceLost`` ends the rounds: the rows of the samples so far come
    first, then the exception. A loss whose gradients are wrong has no times, nor has a loss that
    ``refusals`` names. A loss that raises has a row "failed", and no times. ``tensors``
    keep their addresses, but their rows change places.

    All ranks measure a sharded loss in lock step, and each of them gets the same rows.
    """
    failures = Failures(device)
    memory.freeze_objects()  # what was imported

    def first_call(loss: impls.Loss) -> Iterator[Row]:
        step = step_of(loss, tensors)
        seconds = timers.seconds(step.forward_backward, device)
        if replaced := timers.restore_meters():
            raise RuntimeError(f"it replaces {replaced}")
        yield exact_row(loss.name, "first_call", "s", seconds)

    yield from rows_of_each("first calls", losses, failures, first_call)
    memory.freeze_objects()  # what was compiled
    correct, budget = yield from errors_and_memory(losses, tensors, dtype, failures)
    memory.free_cache(device)
    reference = REFERENCES[losses[0].level](tensors)
    yield exact_row(reference.name, "peak_memory", "bytes", reference.gradient_bytes())
    if isinstance(reference, ShardedReference):
        yield exact_row(reference.name, "sent", "bytes", reference.sent_bytes())
        yield exact_row(reference.name, "collectives", "count", reference.collectives)
    steps: dict[str, Step | Reference] = {reference.name: reference}
    copy = None  # all losses that overwrite their input share a copy of it
    for loss in correct:
        if step := failures.attempt(loss.name, step_of, loss, tensors, copy):
            steps[loss.name] = step
            copy = step.arguments["input"] if step.overwrites_input else copy
    sampler = Sampler(steps, device)
    samples: Samples = defaultdict(list)
    refused: set[str] = set()
    interruption = None
    try:
        take_rounds(sampler, passes, failures, samples)
        refused = refusals.wrong_results(sampler, passes, budget, failures)
    except (KeyboardInterrupt, DeviceLost) as error:
        interruption = error
    refused |= failures.names
    refused |= refusals.below_floor(times_of(samples, refused), reference.name)
    noisy = noisy_times(times_of(samples), reference.name)
    for cell in sorted(cell for cell in samples if cell[0] not in refused):
        yield sampled_row(cell, samples, cell in noisy, sampler.card)
    yield from (exact_row(name, "failed", "count", 1) for name in sorted(failures.names))
    if interruption is not None:
        raise interruption


def times_of(
    samples: Samples, left_out: Collection[str] = ()
) -> dict[tuple[str, str], list[float]]:
    """The usable times by implementation and pass, without the implementations ``left_out``."""
    return {
        cell: usable(cell, samples)
        for cell in samples
        if cell[1] in PASSES and cell[0] not in left_out
    }


def usable(cell: tuple[str, str], samples: Samples) -> list[float]:
    """The values of a cell in the rounds in which the card did not throttle for any cell.

    So the values of two losses are of the same rounds. If too few remain, all values.
    """
    throttled = {
        n
        for (_, metric), taken in samples.items()
        if metric == cell[1]
        for n, sample in enumerate(taken)
        if sample.card and sample.card.throttled
    }
    values = [sample.value for sample in samples[cell]]
    cool = [value for n, value in enumerate(values) if n not in throttled]
    return cool if len(cool) >= ROUNDS[0] else values


def sampled_row(
    cell: tuple[str, str], samples: Samples, noisy: bool, card: gpu_state.Card | None
) -> Row:
    """The row of a time or a share, with its samples."""
    impl, metric = cell
    readings = [sample.card for sample in samples[cell] if sample.card]
    return {
        "impl": impl,
        "metric": metric,
        "unit": "share" if metric == "overlap" else "ms",
        "samples": usable(cell, samples),
        "gpu_state": card.describe(readings) if card and readings else "",
        "noisy": int(noisy),
    }


def rows_of_each(
    title: str,
    losses: Sequence[impls.Loss],
    failures: Failures,
    rows_of: Callable[[impls.Loss], Iterator[Row]],
) -> Iterator[Row]:
    """The rows of each loss. If a loss raises, its rows so far count."""
    for loss in track(losses, title, name=lambda loss: loss.name):
        memory.free_cache(failures.device)
        rows: list[Row] = []
        failures.attempt(loss.name, rows.extend, rows_of(loss))
        yield from rows


def errors_and_memory(
    losses: Sequence[impls.Loss], tensors: Mapping[str, Tensor], dtype: str, failures: Failures
) -> Generator[Row, None, tuple[list[impls.Loss], float]]:
    """Yield the rows of what has no noise.

    Return the losses whose gradients and memory are right, and the budget of the gradients.
    """
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
        rows = memory_rows(step, failures.device)
        peak = next(rows)
        if missing := missing_memory(step, peak["value"]):
            print(f"{loss.name} is not timed: {missing}", file=sys.stderr)
            return
        yield peak
        yield from rows
        if excess := describe_excess(zip(errors, budgets, strict=True)):
            print(f"{loss.name} is not timed: {excess}", file=sys.stderr)
        else:
            correct.append(loss)

    yield from rows_of_each("error, memory", losses, failures, rows_of)
    return correct, budgets[0]


def missing_memory(step: Step, peak: int) -> str:
    """Why the peak memory of ``step`` is too small, in words; empty if it is not."""
    made = sum(leaf.nbytes for leaf in step.leaves)
    if peak >= made or step.overwrites_input:
        return ""
    return (
        f"its peak memory of {peak / 2**20:.1f} MiB is below its gradients' {made / 2**20:.1f}, so "
        "they are in memory of an earlier call, or outside torch's allocator"
    )


def memory_rows(step: Step, device: str) -> Iterator[Row]:
    """The bytes that a step allocates and, if it is sharded, sends."""
    peak = memory.peak_memory(step.forward_backward, device)
    yield exact_row(step.name, "peak_memory", "bytes", peak)
    yield exact_row(step.name, "saved_memory", "bytes", memory.saved_memory(step.forward, device))
    if device == "cpu" and not isinstance(step, ShardedStep):
        outside = memory.outside_torch(step.forward_backward)
        if outside > OUTSIDE:
            how_much = f"{outside / 2**20:.0f} MiB or more outside torch's allocator"
            print(f"{step.name} holds {how_much}; peak_memory lacks them", file=sys.stderr)
    if device == "cuda":
        reserved = memory.reserved_memory(step.forward_backward)
        yield exact_row(step.name, "reserved_memory", "bytes", reserved)
    if isinstance(step, ShardedStep):
        sent, count = collectives.sent(step.forward_backward, device)
        yield exact_row(step.name, "sent", "bytes", sent)
        yield exact_row(step.name, "collectives", "count", count)


def take_rounds(
    sampler: Sampler, passes: Sequence[str], failures: Failures, samples: Samples
) -> None:
    """Sample each pass of each step once a round, and add the samples to ``samples``.

    Each round has a random order. If some times are noisy after the last round, rounds of their
    passes follow, until no time is noisy, for about ``SECONDS`` at most. A step that raises is left
    out from then on. Ranks agree on what is noisy, as each knows only of its own card's throttling.
    """
    reference = next(name for name, step in sampler.steps.items() if isinstance(step, Reference))
    timed = [(name, pass_) for name in sampler.steps for pass_ in passes]
    has_extras = "forward_backward" in passes
    extras = [(name, extra) for name in sampler.steps for extra in sampler.extras(name)]
    cells = timed + (extras if has_extras else [])
    for cell in track(cells, "preparation", name=" ".join):
        failures.attempt(cell[0], sampler.prepare, *cell)
    start = time.monotonic()
    for cell in track(cells, "warm-up", name=" ".join):
        failures.attempt(cell[0], sampler.take, *cell)
    least, most = ROUNDS
    fitting = int(SECONDS[sampler.device] / torchrun.largest(time.monotonic() - start))
    fitting -= 1  # for the last round, of ``refusals``
    order = random.Random(0)

    def take_round(cells: Sequence[tuple[str, str]]) -> None:
        for cell in order.sample(cells, len(cells)):
            for sample in failures.attempt(cell[0], sampler.take, *cell) or []:
                samples[sample.impl, sample.metric].append(sample)

    for _ in track(range(max(least, min(most, fitting))), "rounds"):
        take_round(cells)
    noisy: set[str] = set()
    more = range(max(MORE, min(most, fitting)))
    for done in track(more, "more rounds, as the machine was not steady"):
        if done % MORE == 0:
            found = {pass_ for _, pass_ in noisy_times(times_of(samples), reference)}
            noisy = {pass_ for pass_ in passes if torchrun.largest(pass_ in found)}
        if not noisy:
            break
        take_round([cell for cell in timed if cell[1] in noisy])
