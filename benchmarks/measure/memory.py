"""Counts the bytes of memory that a call takes, in the same way on CPU and CUDA.

With several ranks, each rank gets the largest count of all ranks.
"""

import atexit
import ctypes
import gc
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measure import torch_compat
from benchmarks.measure.timers import synchronize
from benchmarks.ranks import torchrun

RESIDENT = Path("/proc/self/status")  # of Linux
PEAK_RESET = Path("/proc/self/clear_refs")


def free_bytes(device: str) -> int:
    """Bytes that can be allocated on ``device`` now without swapping."""
    if device == "cuda":  # what torch has cached counts as free
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    return psutil.virtual_memory().available


atexit.register(gc.unfreeze)  # or C++ libraries would report leaks as Python ends


def freeze_objects() -> None:
    """Collect garbage. Later collections pass over the objects that are alive now.

    Each meter of memory collects garbage. With all objects of torch and its compiler, a collection
    takes 0.2 s, also where Python makes it in a timed call.
    """
    gc.collect()
    gc.freeze()


def free_cache(device: str) -> None:
    """Return unused memory to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """The most bytes that ``run()`` holds at any moment, without those held before it.

    gloo's threads free a message a moment after it arrived. So with several ranks on the CPU, the
    bytes differ from run to run by some small messages.
    """
    run()  # allocates what is allocated once: workspaces, compiled code
    gc.collect()
    if device == "cuda":
        peak = _cuda_peak(run, "requested_bytes")
    else:
        peak = max(itertools.accumulate(_cpu_allocations(run), initial=0))
    return int(torchrun.largest(peak))


def reserved_memory(run: Callable[[], Any]) -> int:
    """Bytes that torch's CUDA allocator takes from the device for ``run()``, from an empty cache.

    The allocator takes more than ``run`` requests: whole blocks, and gaps that it cannot use again.
    """
    free_cache("cuda")
    return int(torchrun.largest(_cuda_peak(run, "reserved_bytes")))


def _cuda_peak(run: Callable[[], Any], counter: str) -> int:
    """How far a counter of torch's CUDA allocator rises in ``run()``.

    "requested_bytes" is exact. "allocated_bytes" would be rounded up to blocks.
    """
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()[f"{counter}.all.current"]
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()[f"{counter}.all.peak"] - before


def saved_memory(forward: Callable[[], Any], device: str) -> int:
    """Bytes that ``forward()`` allocates and its result keeps until backward."""
    forward()
    gc.collect()
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        result = forward()  # noqa: F841  alive while the bytes are counted
        saved = torch.cuda.memory_stats()["requested_bytes.all.current"] - before
    else:
        saved = sum(_cpu_allocations(forward))
    return int(torchrun.largest(saved))


def outside_torch(run: Callable[[], Any]) -> int:
    """A lower bound of the CPU memory, in bytes, that ``run()`` takes from others than torch.

    The bound is the rise of this process's resident memory, less the bytes that torch allocates
    during ``run()``. Bytes that torch also frees during ``run()`` make the bound lower. It is 0
    where Linux does not let a process reset its peak of resident memory.
    """
    if not os.access(PEAK_RESET, os.W_OK):
        return 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but was touched, would not count
    PEAK_RESET.write_text("5")
    before = _resident("VmRSS")
    allocated = sum(size for size in _cpu_allocations(run) if size > 0)
    return max(0, _resident("VmHWM") - before - allocated)


def _resident(name: str) -> int:
    [line] = [line for line in RESIDENT.read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])


def _cpu_allocations(run: Callable[[], Any]) -> list[int]:
    """Bytes of each allocation (> 0) and release (< 0) of torch's CPU allocator in ``run()``.

    What ``run`` returns is alive at the end. The release of a block that was allocated before
    ``run()`` is left out, because torch does not always report it. Packing buffers of oneDNN and
    MKL are not counted, because these libraries do not use torch's allocator.
    """
    sizes, held = [], set()
    for address, size in torch_compat.allocator_events(run):
        if size > 0:
            held.add(address)
        elif address not in held:
            continue
        sizes.append(size)
    return sizes
