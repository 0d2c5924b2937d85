"""One meter a quantity, the same on CPU and CUDA: seconds, peak bytes, bytes kept."""

import gc
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

# Read when the profiler is first used: without it, two lines on stderr at each use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall-clock time of ``run()`` on an otherwise idle device; what it returns is freed after."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes allocated at the worst moment of ``run()``, less those held before it."""
    run()  # what is allocated once (workspaces, compiled code) is not the loss's
    gc.collect()
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    return max(itertools.accumulate(_cpu_allocations(run), initial=0))


def saved_memory(forward: Callable[[], Any], device: str) -> int:
    """Bytes that ``forward()`` has allocated and that its result keeps: held until backward."""
    forward()
    gc.collect()
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated()
        result = forward()  # noqa: F841  held while the bytes are counted
        return torch.cuda.memory_allocated() - before
    return sum(_cpu_allocations(forward))


def _cpu_allocations(run: Callable[[], Any]) -> list[int]:
    """Bytes of each allocation (> 0) and release (< 0) of torch's CPU allocator in ``run()``.

    What ``run`` returns is alive at the end. A release of a block from before is left out: torch
    reports it only if it happens to remember the block's address. Memory that libraries take by
    themselves (oneDNN's and MKL's packing buffers) does not pass through torch's allocator and is
    not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    events, queue = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while queue:
        event = queue.pop()
        queue.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append(event)
    sizes, held = [], set()
    for event in sorted(events, key=lambda event: event.start_time_ns):
        block = event.extra_fields
        if block.alloc_size > 0:
            held.add(block.ptr)
        elif block.ptr not in held:
            continue
        sizes.append(block.alloc_size)
    return sizes
