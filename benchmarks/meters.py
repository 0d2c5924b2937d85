"""One meter a quantity, the same on CPU and CUDA: seconds, peak bytes, bytes kept, bytes sent.

Of several ranks each gives the largest number of any.
"""

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import lockstep, torch_compat


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def free_cache(device: str) -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall-clock time of ``run()`` on an otherwise idle device; what it returns is freed after.

    All ranks begin together, as each has agreed to the last number.
    """
    lockstep.largest(0.0)
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    elapsed = time.perf_counter() - start
    del result
    return lockstep.largest(elapsed)


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
    return int(lockstep.largest(peak))


def reserved_memory(run: Callable[[], Any]) -> int:
    """Bytes that torch's CUDA allocator takes from the device for ``run()``, none of them cached.

    It takes more than ``run`` asks for: whole blocks, and what it cannot use again between them.
    """
    free_cache("cuda")
    return int(lockstep.largest(_cuda_peak(run, "reserved_bytes")))


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
    return int(lockstep.largest(saved))


def sent(run: Callable[[], Any], device: str) -> tuple[int, int]:
    """Bytes that a rank hands to collectives in ``run()``, and the number of collectives.

    Bytes are those of the collectives' arguments, not what an algorithm makes of them on the wire:
    a ring puts up to twice that there.
    """
    run()  # what ranks tell each other once is not the loss's
    collectives = Collectives(device)
    collectives.watch(run)()
    return int(lockstep.largest(collectives.bytes)), int(lockstep.largest(collectives.count))


def communication(run: Callable[[], Any], device: str) -> tuple[float, float | None]:
    """Seconds of the collectives of ``run()``, and what share of them passes while it computes.

    The share is None if there are no collectives. The seconds are those of a call in which each is
    waited for at once. That call takes longer than one as it is by what is hidden there, behind
    computing or another collective.
    """
    as_it_is = seconds(Collectives(device).watch(run), device)
    collectives = Collectives(device, wait=True)
    waiting = seconds(collectives.watch(run), device)
    # A rank that is early waits for the others: to the last one alone it is communication.
    alone = -sum(lockstep.largest_of_each([-one for one in collectives.seconds]))
    return alone, (waiting - as_it_is) / alone if alone else None


# Of the operators of torch's two namespaces for collectives, those that are none.
SEND_NOTHING = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan")


class Collectives(torch_compat.TorchDispatchMode):
    """Counts torch's collectives and, with ``wait``, times them, each waited for at once.

    torch's own ``CommDebugMode`` knows no bytes, and while it is on nothing runs compiled.
    """

    def __init__(self, device: str, wait: bool = False):
        super().__init__()
        self.device, self.wait = device, wait
        self.bytes, self.count = 0, 0
        self.seconds: list[float] = []  # of each that was waited for

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def watch(self, run: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            with self:
                return run()

        return watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types:  # as DTensor: it goes on to what it is made of, which comes here
            return NotImplemented
        namespace, _, name = func.name().partition("::")
        if namespace not in ("c10d", "_c10d_functional") or name.partition(".")[0] in SEND_NOTHING:
            return func(*args, **kwargs)
        self.count += 1
        self.bytes += payload(func, args)
        if not self.wait:
            return func(*args, **kwargs)
        synchronize(self.device)
        start = time.perf_counter()
        result = func(*args, **kwargs)
        torch_compat.wait(result)
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)
        return result


def payload(func: Any, args: Any) -> int:
    """Bytes that a rank hands to a collective: its inputs or, if that is in place, the first."""
    names = [argument.name for argument in torch_compat.schema_of(func).arguments]
    given = next((i for i, name in enumerate(names) if name.startswith("input")), 0)
    leaves = torch_compat.tree_leaves(args[given])
    return sum(one.nbytes for one in leaves if isinstance(one, Tensor))


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
