"""Times a call: by the host's clock in seconds, or by the GPU's in milliseconds."""

import itertools
import time
from collections.abc import Callable, Sequence
from time import perf_counter  # bound here, before a loss is loaded that may replace it
from typing import Any

import torch

from benchmarks.measure import torch_compat
from benchmarks.ranks import torchrun

FLUSHED = 2**28  # bytes at least that are written before a sample, to flush the L2 cache
CYCLES = 3_000_000  # in a millisecond; the clock of every GPU has fewer
# The longest wait of the device before a call, in milliseconds. It waits for half a millisecond
# and twice the host's launch time. A loss that waits for the device gains nothing by a longer wait.
LONGEST = 20.0

# What a loss could replace to look faster or lighter, with the originals.
METERS = {
    (owner, name): getattr(owner, name)
    for owner, names in (
        (time, ("perf_counter", "perf_counter_ns", "monotonic")),
        (torch.cuda, ("Event", "synchronize", "memory_stats")),
        (torch.cuda.Event, ("record", "elapsed_time")),
        (torch.profiler, ("profile",)),
        (torch.autograd.profiler, ("profile",)),
    )
    for name in names
}


def restore_meters() -> str:
    """Put back the meters that were replaced. Return their names, or "" if none was replaced."""
    replaced = [key for key, original in METERS.items() if getattr(*key) is not original]
    for owner, name in replaced:
        setattr(owner, name, METERS[owner, name])
    return ", ".join(f"{owner.__name__}.{name}" for owner, name in replaced)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall-clock time of ``run()`` on an idle device, without freeing what it returns.

    With several ranks, it is the time of the slowest.
    """
    torchrun.largest(0.0)  # all ranks begin together
    synchronize(device)
    start = perf_counter()
    result = run()
    synchronize(device)
    elapsed = perf_counter() - start
    del result
    return torchrun.largest(elapsed)


class EventTimer:
    """Device time of calls, by CUDA events around each.

    Before each call the timer fills the L2 cache with other data. Then the device spins until the
    host has launched the whole call, so gaps between launches do not count. If a loss waits for the
    device inside its call, the host cannot launch it ahead. Then its time contains the host's time,
    as in a training step.
    """

    def __init__(self) -> None:
        l2 = torch.cuda.get_device_properties().L2_cache_size
        self.scratch = torch.empty(max(FLUSHED, 2 * l2), dtype=torch.uint8, device="cuda")

    def milliseconds(self, run: Callable[[], Any], host: float) -> float:
        """Device time of ``run()``, which the host needs ``host`` milliseconds to launch."""
        [time] = self.times([run], host)
        return torchrun.largest(time)

    def times(self, calls: Sequence[Callable[[], Any]], host: float) -> list[float]:
        """Device times of calls that follow each other without a gap."""
        torchrun.largest(0.0)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        self.scratch.fill_(0)
        torch_compat.spin(int(CYCLES * min(2 * host + 0.5, LONGEST)))
        events[0].record()
        results = []
        for call, end in zip(calls, events[1:], strict=True):
            results.append(call())
            end.record()
        torch.cuda.synchronize()
        del results
        return [start.elapsed_time(end) for start, end in itertools.pairwise(events)]


def launch(run: Callable[[], Any]) -> float:
    """Host time from the call of ``run()`` to its return, on an idle device.

    If a loss waits for the device inside its call, the wait counts.
    """
    torchrun.largest(0.0)
    torch.cuda.synchronize()
    start = perf_counter()
    result = run()
    elapsed = perf_counter() - start
    torch.cuda.synchronize()
    del result
    return torchrun.largest(1e3 * elapsed)


class Calls:
    """Device time of calls of one step, with an injected slowdown if asked, for ``compare``.

    ``prepared()`` does what is not timed, and returns the call to time. The device's clock changes
    with its load, so each call says how long the next one has to spin for its slowdown.
    """

    def __init__(self, prepared: Callable[[], Callable[[], Any]]) -> None:
        self.prepared = prepared
        self.timer = EventTimer()
        self.host = min(launch(prepared()) for _ in range(3))
        self.usual = 0.0  # milliseconds of the last call
        self.cycles = float(CYCLES)  # in a millisecond
        for _ in range(5):
            self.seconds(slowdown=1.0)

    def seconds(self, slowdown: float) -> float:
        """Seconds of a call. The device spins for ``slowdown`` times the usual time after it."""
        spin = int(slowdown * self.usual * self.cycles)
        calls = [self.prepared(), lambda: torch_compat.spin(spin)]
        self.usual, spun = self.timer.times(calls, self.host)
        if spin:
            self.cycles = spin / spun
        return (self.usual + spun) / 1000
