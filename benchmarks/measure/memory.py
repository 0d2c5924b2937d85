"""Memory that a call takes, in bytes, the same on CPU and CUDA.

Of several ranks each gets the largest number of any.
"""

import gc
import itertools
from collections.abc import Callable
from typing import Any

import psutil
import torch

from benchmarks.measure import torch_compat
from benchmarks.measure.timers import synchronize
from benchmarks.ranks import torchrun


def free_bytes(device: str) -> int:
    """Memory that can be allocated on ``device`` now without swapping."""
    if device == "cuda":  # torch's cache can be used again
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    return psutil.virtual_memory().available


def free_cache(device: str) -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes allocated at the worst moment of ``run()``, less those held before it.

    gloo's threads let go of what was sent a moment after it arrived: of several ranks on the CPU,
    the bytes differ from run to run by some small messages.
    """
    run()  # what is allocated once (workspaces, compiled code) is not the loss's
    gc.collect()
    if device == "cuda":
        peak = _cuda_peak(run, "requested_bytes")
    else:
        peak = max(itertools.accumulate(_cpu_allocations(run), initial=0))
    return int(torchrun.largest(peak))


def reserved_memory(run: Callable[[], Any]) -> int:
    """Bytes that torch's CUDA allocator takes from the device for ``run()``, none of them cached.

    It takes more than ``run`` asks for: whole blocks, and what it cannot use again between them.
    """
    free_cache("cuda")
    return int(torchrun.largest(_cuda_peak(run, "reserved_bytes")))


def _cuda_peak(run: Callable[[], Any], counted: str) -> int:
    """How far a count of torch's CUDA allocator rises in ``run()``.

    "requested_bytes" are exact. "allocated_bytes" would be rounded up to blocks.
    """
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()[f"{counted}.all.current"]
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()[f"{counted}.all.peak"] - before


def saved_memory(forward: Callable[[], Any], device: str) -> int:
    """Bytes that ``forward()`` has allocated and that its result keeps: held until backward."""
    forward()
    gc.collect()
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        result = forward()  # noqa: F841  held while the bytes are counted
        saved = torch.cuda.memory_stats()["requested_bytes.all.current"] - before
    else:
        saved = sum(_cpu_allocations(forward))
    return int(torchrun.largest(saved))


def _cpu_allocations(run: Callable[[], Any]) -> list[int]:
    """Bytes of each allocation (> 0) and release (< 0) of torch's CPU allocator in ``run()``.

    What ``run`` returns is alive at the end. A release of a block from before is left out: torch
    reports it only if it happens to remember the block's address. Memory that libraries take by
    themselves (oneDNN's and MKL's packing buffers) does not pass through torch's allocator and is
    not seen.
    """
    sizes, held = [], set()
    for address, size in torch_compat.allocator_events(run):
        if size > 0:
            held.add(address)
        elif address not in held:
            continue
        sizes.append(size)
    return sizes
