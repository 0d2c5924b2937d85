"""What a rank sends to the others in a call, and the time that the collectives take."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.measure import torch_compat
from benchmarks.measure.timers import seconds, synchronize
from benchmarks.ranks import torchrun

# Of the operators of torch's two namespaces for collectives, those that are none.
SEND_NOTHING = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan")


def sent(run: Callable[[], Any], device: str) -> tuple[int, int]:
    """Bytes that a rank hands to collectives in ``run()``, and the number of collectives.

    Bytes are those of the collectives' arguments, not what an algorithm makes of them on the wire:
    a ring puts up to twice that there.
    """
    run()  # what ranks tell each other once is not the loss's
    collectives = Collectives(device)
    collectives.watch(run)()
    return int(torchrun.largest(collectives.bytes)), int(torchrun.largest(collectives.count))


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
    alone = -sum(torchrun.largest_of_each([-one for one in collectives.seconds]))
    return alone, (waiting - as_it_is) / alone if alone else None


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
