"""Now, in one process: implementations timed in turn, round after round, so noise is shared."""

import csv
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

import impls
from benchmarks import lockstep, meters
from benchmarks.limits import LIMITS, Limit, ShardedLimit
from benchmarks.step import ShardedStep, Step, step_of

ROUNDS = (9, 60)  # at least, at most
SECONDS = 20.0  # that the rounds may take, once there are enough

Row = dict[str, Any]


def measure(
    losses: Sequence[impls.Loss],
    tensors: Mapping[str, Tensor],
    dtype: str,
    device: str,
    passes: Sequence[str],
) -> Iterator[Row]:
    """Rows (impl, metric, unit, value, ci_low, ci_high, n) of one level's losses and of its limit.

    A time has its samples too, in the order in which they were taken.

    Error and memory come first, as each is measured, then the times of all. Ctrl-C ends the rounds:
    it is raised after the times of those so far. A loss whose gradients are wrong has no times.

    A sharded one is measured by all ranks in lock step, of which each gets the same rows.
    """
    limit = LIMITS[losses[0].level](tensors)
    yield exact(limit.name, "peak_memory", "bytes", limit.gradient_bytes())
    if isinstance(limit, ShardedLimit):
        yield exact(limit.name, "sent", "bytes", limit.sent_bytes())
        yield exact(limit.name, "collectives", "count", limit.collectives)
    steps: dict[str, Step | Limit] = {limit.name: limit}
    first = step_of(losses[0], tensors)
    expected = first.expected()
    budgets = first.budgets(expected, dtype)
    with tqdm(losses, desc="error, memory", leave=False) as bar:
        for loss in bar:
            bar.set_postfix_str(loss.name)
            step = step_of(loss, tensors)
            errors = step.errors(expected)
            yield exact(loss.name, "error", "relative", errors[0])
            peak = meters.peak_memory(step.forward_backward, device)
            yield exact(loss.name, "peak_memory", "bytes", peak)
            saved = meters.saved_memory(step.forward, device)
            yield exact(loss.name, "saved_memory", "bytes", saved)
            if isinstance(step, ShardedStep):
                sent, collectives = meters.sent(step.forward_backward, device)
                yield exact(loss.name, "sent", "bytes", sent)
                yield exact(loss.name, "collectives", "count", collectives)
            over = [pair for pair in zip(errors, budgets, strict=True) if not pair[0] <= pair[1]]
            if not over:
                steps[loss.name] = step
            for error, allowed in over:
                tqdm.write(
                    f"{loss.name}: gradients are wrong, {error:.2g} > {allowed:.2g}: no times"
                )
    del expected
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    interruption = None
    try:
        for name, metric, value in rounds(steps, passes, device):
            samples[name, metric].append(value)
    except KeyboardInterrupt as error:
        interruption = error
    yield from (sampled(*cell, values) for cell, values in sorted(samples.items()))
    if interruption is not None:
        raise interruption


def rounds(
    steps: Mapping[str, Step | Limit], passes: Sequence[str], device: str
) -> Iterator[tuple[str, str, float]]:
    """(name, metric, value): each pass of each step once a round, in an order of its own."""
    cells = [(name, pass_) for name in steps for pass_ in passes]
    if lockstep.world_size() > 1 and "forward_backward" in passes:
        sharded = [name for name, step in steps.items() if isinstance(step, ShardedStep)]
        cells += [(name, "communication") for name in sharded]
    start = time.monotonic()
    for name, pass_ in cells:
        sample(steps[name], pass_, device)
    least, most = ROUNDS
    count = max(least, min(most, int(SECONDS / lockstep.largest(time.monotonic() - start))))
    order = random.Random(0)
    for _ in tqdm(range(count), desc="rounds", leave=False):
        for name, pass_ in order.sample(cells, len(cells)):
            for metric, value in sample(steps[name], pass_, device).items():
                yield name, metric, value


def sample(step: Step | Limit, pass_: str, device: str) -> dict[str, float]:
    """Milliseconds of one call. Before a "backward" its forward is made, and not timed."""
    if pass_ == "communication":
        seconds, hidden = meters.communication(step.forward_backward, device)
        return {"communication": 1e3 * seconds, "overlap": hidden}
    if pass_ == "backward":
        loss: Any = step.forward()
        return {pass_: 1e3 * meters.seconds(lambda: step.backward(loss), device)}
    return {pass_: 1e3 * meters.seconds(getattr(step, pass_), device)}


def exact(impl: str, metric: str, unit: str, value: float) -> Row:
    """The row of a quantity that has no noise."""
    cell = {"impl": impl, "metric": metric, "unit": unit}
    return cell | {"value": value, "ci_low": value, "ci_high": value, "n": 1}


def sampled(impl: str, metric: str, samples: list[float]) -> Row:
    """The row of a time, or of a share: its median, with a 95 % interval."""
    from reports.statistics import median_interval

    value, low, high = median_interval(samples)
    cell = {"impl": impl, "metric": metric, "unit": "share" if metric == "overlap" else "ms"}
    interval = {"value": value, "ci_low": low, "ci_high": high}
    listed = " ".join(f"{sample:.5g}" for sample in samples)
    return cell | interval | {"n": len(samples), "samples": listed}


def append(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """``rows`` again, each written to the CSV at ``path`` before the next is asked for.

    A file that has rows keeps its columns, which an older version may have begun.
    """
    from reports.results import COLUMNS

    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        begun = next(csv.reader(file), None)
        writer = csv.DictWriter(file, begun or [*COLUMNS, "samples"], extrasaction="ignore")
        if not begun:
            writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
            yield row
