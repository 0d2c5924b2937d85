"""Simulates a training step on tensors without elements, and counts what it holds, moves and sends.

The tensors are torch's fake tensors, so a step of any size runs on any machine and allocates
nothing. torch's ``MemTracker`` follows the memory, and its flop counter's formulas count products.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from benchmarks.measure import torch_compat
from benchmarks.measure.collectives import payload
from benchmarks.measure.references import Reference, ShardedReference
from benchmarks.measure.step import Step
from benchmarks.measure.torch_compat import storage_id
from benchmarks.plan.fakes import Shapes, fake

KERNELS = "cross_entropy_bench"  # the namespace of our kernels, which need elements

Access = tuple[int, int]  # a storage's id, and how many bytes of the storage


class NotSimulated(Exception):
    """What the step does depends on the elements; the message says how."""


@dataclass(frozen=True)
class Prediction:
    """What forward and backward together need."""

    peak_memory: int  # bytes, as ``memory.peak_memory`` measures them
    saved_memory: int  # bytes, likewise
    flops: int  # of matrix products
    moved: int  # bytes, as ``accesses`` counts them
    sent: int  # bytes handed to collectives


def predict(
    make: Callable[[Mapping[str, Tensor]], Step | Reference],
    shapes: Shapes,
    dtype: str,
    device: str,
) -> Prediction:
    """What the step that ``make`` makes from tensors of these shapes needs.

    A compiled function counts as one operation that holds nothing but its results. This is true if
    the compiler fuses it into one loop. If autograd records the function, the compiler decides what
    backward keeps, and this raises ``NotSimulated``. It also does if the elements decide. torch
    forgets what it has compiled before.
    """
    torch.compiler.reset()  # torch compiles a function for a limited number of kinds of tensors
    with torch_compat.FakeTensorMode():
        given = fake(shapes, dtype, device)
        step = make(given)
        tracker = _Tracker(device)
        tracker.track_external(*given.values(), *tensors(vars(step)))
        before = torch_compat.bytes_held(tracker)
        try:
            saved = tracker.run(step)
        except torch_compat.DATA_DEPENDENT_ERRORS as error:
            raise NotSimulated(f"the data decide what it does ({error})") from error
        except NotSimulated:
            raise
        except Exception as error:  # a kernel may raise anything for lack of elements
            raise NotSimulated(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        peak = torch_compat.bytes_held(tracker, "peak")
        if isinstance(step, Reference):
            peak += step.gradient_bytes()
        if isinstance(step, ShardedReference):
            tracker.sent = step.sent_bytes()
    return Prediction(peak - before, saved - before, tracker.flops, tracker.moved, tracker.sent)


class _Tracker(torch_compat.memory_tracker()):  # type: ignore[misc]
    """torch's memory tracker, which here also counts products, bytes moved and bytes sent."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.flops = self.moved = self.sent = 0
        self.inside: Traffic | None = None  # of the compiled function that is running

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # otherwise torch.compile does nothing while this mode is on

    def run(self, step: Step | Reference) -> int:
        """Run forward and backward. Return the bytes that are held between them."""
        with torch.compiler.set_stance("default", force_backend=self.one_operation), self:
            if isinstance(step, Reference):
                step.forward_backward()
                return torch_compat.bytes_held(self)
            value = step.forward()
            saved = torch_compat.bytes_held(self)
            step.backward(value)
        return saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        body = torch_compat.python_body(func)
        if body is not None and func.namespace != KERNELS:  # count the operations of its body
            with self:
                return body(*args, **kwargs)
        if self.inside is None:
            with self:
                temporary = conversions(func, args, kwargs) if self.device == "cpu" else []
            result = super().__torch_dispatch__(func, types, args, kwargs)
            del temporary
        else:
            result = func(*args, **kwargs)
        if result is NotImplemented:
            return result
        if formula := torch_compat.flop_formula(func):
            self.flops += formula(*args, **kwargs, out_val=result)
        if func.namespace in ("c10d", "_c10d_functional"):
            self.sent += payload(func, args)
            return result
        read, written = accesses(func, args, kwargs, result)
        if self.inside is None:
            self.moved += sum(size for _, size in read + written)
        else:
            self.inside.add(read, written)
        return result

    def one_operation(self, graph: GraphModule, _: Any) -> Callable[..., Any]:
        """A backend of torch.compile: runs the graph as one operation."""

        def run(*args: Any) -> Any:
            given = tensors(args)
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
                raise NotSimulated("torch.compile decides what backward keeps")
            self.inside = Traffic({storage_id(tensor) for tensor in given})
            try:
                results = Interpreter(graph).run(*args)
            finally:
                traffic, self.inside = self.inside, None
            self.moved += traffic.bytes
            for result in results:
                if storage_id(result) not in traffic.given:
                    self.moved += elements(result) * result.itemsize
                result.detach()  # the tracker sees the result through this view
            return results

        return run


class Traffic:
    """What a compiled function reads and writes of its arguments' storages. Each counts once."""

    def __init__(self, given: set[int]):
        self.given = given
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}

    def add(self, read: list[Access], written: list[Access]) -> None:
        for total, more in ((self.read, read), (self.written, written)):
            for key, size in more:
                if key in self.given:
                    total[key] = max(size, total.get(key, 0))

    @property
    def bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


def accesses(func: Any, args: Any, kwargs: Any, result: Any) -> tuple[list[Access], list[Access]]:
    """What an operation reads and writes: each argument and each result counts once.

    A view moves nothing. Of an indexed tensor, as many elements count as there are indices, or
    values to put there. A new or overwritten tensor is not read. Our kernels ``scale_`` move
    nothing: their factor is 1 in training.
    """
    if func.is_view or func.namespace == "prim":
        return [], []
    name = torch_compat.schema_of(func).name.partition("::")[2]
    read, changed = operands(func, args, kwargs)
    written = tensors(result)
    most = {}
    if func.namespace == KERNELS:
        read, written = ([], []) if name.startswith("scale_") else (read, written + changed)
    elif any(other.dtype == torch.int64 for other in read[1:]):
        most = {storage_id(read[0]): max(other.numel() for other in read[1:])}
    if name.startswith("new_") or name.endswith("_like"):
        read = []
    elif name in ("copy_", "fill_", "zero_"):
        read = read[1:]
    if "empty" in name:
        written = []

    def access(tensor: Tensor) -> Access:
        key = storage_id(tensor)
        return key, tensor.itemsize * min(elements(tensor), most.get(key, tensor.numel()))

    return list(map(access, read)), list(map(access, written))


def conversions(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an elementwise operation allocates on the CPU to convert several dtypes to one."""
    if torch.Tag.pointwise not in func.tags:
        return []
    read, written = operands(func, args, kwargs)
    numbers = [tensor for tensor in read if tensor.dim() and tensor.dtype != torch.bool]
    if not numbers:
        return []
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in numbers))
    others = [tensor for tensor in numbers + written if tensor.dtype != dtype]
    return [torch.empty_like(tensor, dtype=dtype) for tensor in others]


def operands(func: Any, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors among the arguments that are read, and those that are written to."""
    parameters = {each.name: each for each in torch_compat.schema_of(func).arguments}
    given = [*zip(parameters.values(), args, strict=False)]
    given += [(parameters[name], value) for name, value in kwargs.items()]
    read = [value for parameter, value in given if not parameter.is_out]
    written = [
        value
        for parameter, value in given
        if parameter.alias_info and parameter.alias_info.is_write
    ]
    return tensors(read), tensors(written)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch_compat.tree_leaves(tree) if isinstance(leaf, Tensor)]


def elements(tensor: Tensor) -> int:
    """How many elements are in memory. An expanded tensor has fewer than its shape says."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.itemsize)
