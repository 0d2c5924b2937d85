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
from benchmarks import meters
from benchmarks.limits import LIMITS, Limit
from benchmarks.step import Step

PASSES = ("forward", "backward", "forward_backward")
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
    """
    limit = LIMITS[losses[0].level](tensors)
    yield exact(limit.name, "peak_memory", "bytes", limit.gradient_bytes())
    steps: dict[str, Step | Limit] = {limit.name: limit}
    expected = Step(losses[0], tensors).expected()
    budgets = Step(losses[0], tensors).budgets(expected, dtype)
    with tqdm(losses, desc="error, memory", leave=False) as bar:
        for loss in bar:
            bar.set_postfix_str(loss.name)
            step = Step(loss, tensors)
            errors = step.errors(expected)
            yield exact(loss.name, "error", "relative", errors[0])
            peak = meters.peak_memory(step.forward_backward, device)
            yield exact(loss.name, "peak_memory", "bytes", peak)
            saved = meters.saved_memory(step.forward, device)
            yield exact(loss.name, "saved_memory", "bytes", saved)
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
        for name, pass_, seconds in rounds(steps, passes, device):
            samples[name, pass_].append(1e3 * seconds)
    except KeyboardInterrupt as error:
        interruption = error
    yield from (sampled(*cell, values) for cell, values in sorted(samples.items()))
    if interruption is not None:
        raise interruption


def rounds(
    steps: Mapping[str, Step | Limit], passes: Sequence[str], device: str
) -> Iterator[tuple[str, str, float]]:
    """(name, pass, seconds): each pass of each step once a round, in an order of its own."""
    cells = [(name, pass_) for name in steps for pass_ in passes]
    start = time.monotonic()
    for name, pass_ in cells:
        sample(steps[name], pass_, device)
    least, most = ROUNDS
    count = max(least, min(most, int(SECONDS / (time.monotonic() - start))))
    order = random.Random(0)
    for _ in tqdm(range(count), desc="rounds", leave=False):
        for name, pass_ in order.sample(cells, len(cells)):
            yield name, pass_, sample(steps[name], pass_, device)


def sample(step: Step | Limit, pass_: str, device: str) -> float:
    """Seconds of one call. Before a "backward" its forward is made, and not timed."""
    if pass_ != "backward":
        return meters.seconds(getattr(step, pass_), device)
    loss: Any = step.forward()
    return meters.seconds(lambda: step.backward(loss), device)


def exact(impl: str, metric: str, unit: str, value: float) -> Row:
    """The row of a quantity that has no noise."""
    cell = {"impl": impl, "metric": metric, "unit": unit}
    return cell | {"value": value, "ci_low": value, "ci_high": value, "n": 1}


def sampled(impl: str, metric: str, milliseconds: list[float]) -> Row:
    """The row of a time: its median, with a 95 % interval."""
    from reports.statistics import median_interval

    value, low, high = median_interval(milliseconds)
    cell = {"impl": impl, "metric": metric, "unit": "ms"}
    samples = " ".join(f"{sample:.5g}" for sample in milliseconds)
    interval = {"value": value, "ci_low": low, "ci_high": high}
    return cell | interval | {"n": len(milliseconds), "samples": samples}


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
