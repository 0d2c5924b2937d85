"""Counts what a rank sends to the other ranks in a call, and times the collectives."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from torch import Tensor

from benchmarks.measure import torch_compat
from benchmarks.measure.timers import seconds, synchronize
from benchmarks.ranks import torchrun

# Operators in torch's two namespaces of collectives that are no collectives.
SEND_NOTHING = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan")


def sent(run: Callable[[], Any], device: str) -> tuple[int, int]:
    """Bytes that a rank hands to collectives in ``run()``, and the number of collectives.

    The bytes are those of the collectives' arguments. An algorithm may send more: a ring sends up
    to twice as many.
    """
    run()  # sends what ranks send only once
    collectives = Collectives(device)
    collectives.watch(run)()
    return int(torchrun.largest(collectives.bytes)), int(torchrun.largest(collectives.count))


def communication(run: Callable[[], Any], device: str) -> tuple[float, float | None]:
    """Seconds of the collectives of ``run()``, and the share of them that is hidden.

    Time is hidden if the rank computes, or runs another collective, meanwhile. A second call waits
    for each collective at once, which gives the seconds. The second call is longer than the first
    by the hidden time. The share is None if there are no collectives.
    """
    usual = seconds(Collectives(device).watch(run), device)
    collectives = Collectives(device, wait=True)
    waiting = seconds(collectives.watch(run), device)
    # An early rank's time contains waiting for the others, so the shortest time counts.
    total = -sum(torchrun.largest_of_each([-duration for duration in collectives.seconds]))
    return total, (waiting - usual) / total if total else None


class Collectives(torch_compat.TorchDispatchMode):
    """Counts torch's collectives. With ``wait``, waits for each at once and times it.

    torch's own ``CommDebugMode`` counts no bytes, and while it is on nothing runs compiled.
    """

    def __init__(self, device: str, wait: bool = False):
        super().__init__()
        self.device, self.wait = device, wait
        self.bytes, self.count = 0, 0
        self.seconds: list[float] = []  # of each collective, with ``wait``

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
        if types:  # a subclass, such as DTensor, calls operators on plain tensors, which come here
            return NotImplemented
        namespace, _, name = func.name().partition("::")
        if namespace not in ("c10d", "_c10d_functional") or name.partition(".")[0] in SEND_NOTHING:
            return func(*args, **kwargs)
        self.count += 1
        self.bytes += payload(func, args)
        if not self.wait:
            return func(*args, **kwargs)
        synchronize(self.device)
        start = perf_counter()
        result = func(*args, **kwargs)
        torch_compat.wait(result)
        synchronize(self.device)
        self.seconds.append(perf_counter() - start)
        return result


def payload(func: Any, args: Any) -> int:
    """Bytes of a collective's inputs. A collective in place has them as its first argument."""
    names = [argument.name for argument in torch_compat.schema_of(func).arguments]
    position = next((i for i, name in enumerate(names) if name.startswith("input")), 0)
    leaves = torch_compat.tree_leaves(args[position])
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
