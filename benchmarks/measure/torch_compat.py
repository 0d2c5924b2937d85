"""Wraps the torch APIs that are private, or that differ between versions of torch.

No other module of ``benchmarks`` or ``tests`` calls such an API. ``impls`` has its own in
``impls.shared.compile``. ``tests/benchmarks/measure/test_torch_compat.py`` has a test for each API,
which fails if a torch lacks the API or changes its meaning. What is slow to import is imported in
the function that needs it.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch._library.custom_ops import OPDEFS
from torch._subclasses import DynamicOutputShapeException
from torch._subclasses import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves

# The profiler reads this at its first use. Without it, each use prints two lines on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# A fake tensor raises these if the result, or its shape, depends on the elements.
DATA_DEPENDENT_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)


def strict_fake_mode() -> FakeTensorMode:
    """A ``FakeTensorMode`` in which a kernel that asks for a tensor's memory raises.

    By default torch gives such a kernel the address 0, and reading it ends the process.
    """
    with torch._functorch.config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
        return FakeTensorMode()


def allocator_events(run: Callable[[], Any]) -> list[tuple[int, int]]:
    """Address and bytes of each block that torch's CPU allocator allocates or frees in ``run()``.

    The events are in the order of time. A freed block has negative bytes. What ``run`` returns is
    alive at the end. ``torch.profiler`` shows sums of these events, not the events.
    """
    # torch.profiler's own profile would import torch._inductor, which takes seconds.
    with profile(profile_memory=True, use_kineto=True) as profiler:
        result = run()
    del result
    events, queue = [], list(profiler.kineto_results.experimental_event_tree())
    while queue:
        event = queue.pop()
        queue.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append(event)
    blocks = [event.extra_fields for event in sorted(events, key=lambda event: event.start_time_ns)]
    return [(block.ptr, block.alloc_size) for block in blocks]


def spin(cycles: int) -> None:
    """Make the current CUDA stream wait for ``cycles`` of the device's clock.

    torch has no public call that keeps a stream busy for a given time.
    """
    torch.cuda._sleep(cycles)


def stop_progress_monitor() -> None:
    """Keep the progress bars of torch's compiler from starting a thread, which would never end.

    The bars are tqdm's, where it is installed, else torch's own.
    """
    torch.hub.tqdm.monitor_interval = 0


def schema_of(func: Any) -> Any:
    """The schema of an operator: its name, and which arguments the operator changes."""
    return func._schema


def flop_formula(func: Any) -> Callable[..., int] | None:
    """The formula of ``torch.utils.flop_counter`` for an operator; None if it has no formula.

    The table of formulas is not documented, and its keys are private.
    """
    from torch.utils.flop_counter import flop_registry

    return flop_registry.get(func._overloadpacket)


def python_body(func: Any) -> Callable[..., Any] | None:
    """The function that ``torch.library.custom_op`` decorated; None for other operators."""
    custom = OPDEFS.get(func._schema.name)
    return None if custom is None else custom._init_fn


def storage_id(tensor: Tensor) -> int:
    """A number that tensors share if they share memory. A fake tensor's address is always 0."""
    return tensor.untyped_storage()._cdata


def memory_tracker() -> type[Any]:
    """torch's ``MemTracker``: a mode that follows which tensors are alive, fake tensors included.

    This is a function, because asv would list ``track_external`` of a class here as a benchmark.
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    return MemTracker


def bytes_held(tracker: Any, when: str = "current") -> int:
    """Bytes of all tensors that a ``MemTracker`` sees alive, "current" or at the "peak"."""
    return sum(of_device["Total"] for of_device in tracker.get_tracker_snapshot(when).values())


def fake_store() -> Any:
    """The store of the process group "fake", whose collectives do nothing. Registers the group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def wait(result: Any) -> None:
    """Wait for a collective whose operator returned ``result``.

    Operators of "_c10d_functional" return a tensor. Operators of "c10d" return the work, alone or
    as the last element.
    """
    if isinstance(result, Tensor):
        torch.ops._c10d_functional.wait_tensor(result)
    else:
        work = result[-1] if isinstance(result, tuple | list) else result
        torch.distributed.Work.unbox(work).wait()


def work_of(future: Any) -> Any:
    """A work, as operators of "c10d" return it, that is done when ``future`` is."""
    from torch._C import _distributed_c10d as c10d

    return c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]


def compiled_graphs() -> int:
    """How many graphs ``torch.compile`` has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
