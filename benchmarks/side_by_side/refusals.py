"""Which losses get no times, because what was timed was not the whole work.

A loss could be right when its errors are measured, and wrong or unfinished when it is timed. So the
last round compares what timed calls return with PyTorch's own loss, and each time has a floor.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment.progress import track
from benchmarks.measure import oracle, timers
from benchmarks.measure.step import Step
from benchmarks.side_by_side.failures import Failures
from benchmarks.side_by_side.sampler import Sampler

# The least times that are believed, as shares of the reference's time in the same pass. Every loss
# of logits reads each logit once. Then it writes a gradient, but an in-place loss writes to what it
# has read, which can stay in the cache. So the least work is one reading: the whole forward of the
# reference, half of its copy. The floor is half of this, because another kernel can read faster.
# backward has no floor, as forward may have made the gradient. Nor has a loss of hidden states: in
# half precision on a CPU, other products can be many times faster than the reference's.
FLOORS = {"forward": 1 / 2, "forward_backward": 1 / 4, "forward_backward_unit": 1 / 4}
# In the last round an error may be so many budgets: the two losses compared both round, and one
# row is less precise than all rows together.
BUDGETS = 4


def wrong_results(
    sampler: Sampler, passes: Sequence[str], budget: float, failures: Failures
) -> set[str]:
    """Make a last round, and return the losses whose timed calls raise or return something wrong.

    Before the round two rows of the input change places, but not their targets. So value and
    gradients are new, at the same addresses. A line on stderr says what is wrong. Sharded losses
    are left out: no process has all that PyTorch's own loss needs. If a meter was replaced during
    the rounds, all losses are returned.
    """
    if replaced := timers.restore_meters():
        print(f"no loss has times: one of them replaced {replaced}", file=sys.stderr)
        return set(sampler.steps)
    steps = {
        name: step
        for name, step in sampler.steps.items()
        if type(step) is Step and name not in failures.names
    }
    if not steps:
        return set()
    first = next(iter(steps.values()))
    first.swap_rows(sampler.two_rows(first), names=["input"])
    expected = oracle.evaluate(oracle.NATIVE[first.loss.level], first.given, first.grad)
    wrong = set()
    for name, pass_ in track([(name, pass_) for name in steps for pass_ in passes], "last round"):
        if name in wrong:
            continue
        step, allowed = steps[name], BUDGETS * budget
        found = failures.attempt(name, fault, sampler, step, pass_, expected, allowed)
        if found != "":
            wrong.add(name)
        if found:
            print(f"{name} has no times: in its timed {pass_} the {found}", file=sys.stderr)
    return wrong


def fault(
    sampler: Sampler, step: Step, pass_: str, expected: Mapping[str, Tensor], allowed: float
) -> str:
    """What is wrong with the results of one timed call, in words; empty if nothing is."""
    step.renew_input()
    results = sampler.results(step.name, pass_)
    names = ["value"] if pass_ == "forward" else [what for what in expected if what != "value"]
    for what, (kind, actual) in zip(names, results, strict=True):
        told = what if what == "value" else f"gradient of {what}"
        if kind != "Tensor":
            return f"{told} is a {kind}, not a plain tensor, so work may be left undone"
        if pass_ == "forward_backward_unit":
            actual *= step.grad.flatten()[0]  # the same for all rows
        if not (error := difference(what, actual, expected[what])) <= allowed:
            return f"{told} is wrong: error {error:.2g}, allowed {allowed:.2g}"
    return ""


def difference(what: str, actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖; of the input's rows, the largest over the usual norm.

    A norm over all rows would hide two rows of an earlier call.
    """
    if actual.shape != expected.shape:
        return float("inf")
    wide = torch.promote_types(expected.dtype, torch.float32)
    distance, size = actual - expected, torch.linalg.vector_norm(expected, dtype=wide)
    if what != "input":
        return float(torch.linalg.vector_norm(distance, dtype=wide) / size)
    rows = torch.linalg.vector_norm(distance, dim=1, dtype=wide)
    return float(rows.max() / (size / len(rows) ** 0.5))


def below_floor(times: Mapping[tuple[str, str], Sequence[float]], reference: str) -> set[str]:
    """The losses of logits with a time below its floor. A line on stderr says which.

    ``times`` has the times of each implementation in each pass. The ``reference`` is one of the
    implementations. Its shortest time counts, because a disturbance of the machine only makes its
    times longer. A pass in which the reference has no time has no floor.
    """
    below: set[str] = set()
    for name, pass_ in times:
        if reference != "logits.reference" or name in {reference, *below} or pass_ not in FLOORS:
            continue
        if (reference, pass_) not in times:
            continue
        time, base = float(np.median(times[name, pass_])), min(times[reference, pass_])
        if time < FLOORS[pass_] * base:
            below.add(name)
            print(
                f"{name} has no times: its {pass_} of {time:.2g} ms is below {FLOORS[pass_]:g} × "
                f"the reference's {base:.2g} ms, which is half the time to read the logits once",
                file=sys.stderr,
            )
    return below
