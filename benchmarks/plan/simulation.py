"""A training step on tensors without elements: what it holds, multiplies, moves and sends.

The tensors are torch's fake ones, so a step of any size runs on any machine and allocates nothing.
torch's own ``MemTracker`` looks on, and its flop counter's formulas count.
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

KERNELS = "cross_entropy_bench"  # the namespace of our Triton kernels, which need elements

Access = tuple[int, int]  # a storage, and bytes of it
Shapes = Mapping[str, tuple[int, ...]]


class NotSimulated(Exception):
    """What a step does cannot be told without its elements; the message says why."""


@dataclass(frozen=True)
class Prediction:
    """Of forward and backward together."""

    peak_memory: int  # bytes, as ``memory.peak_memory`` measures them
    saved_memory: int  # bytes, likewise
    flops: int  # of matrix products
    moved: int  # bytes, as ``accesses`` has it
    sent: int  # bytes handed to collectives


def fake(shapes: Shapes, dtype: str, device: str) -> dict[str, Tensor]:
    """Tensors of these shapes, the target's int64. To be called in a ``FakeTensorMode``."""
    if device == "cuda" and not torch.cuda.is_available():
        device = "cpu"  # of whose fake tensors alone autograd then has no need of a driver
    dtypes = {"target": torch.int64}
    return {
        name: torch.empty(shape, dtype=dtypes.get(name, getattr(torch, dtype)), device=device)
        for name, shape in shapes.items()
    }


def argument_bytes(shapes: Shapes, dtype: str) -> int:
    with torch_compat.FakeTensorMode():
        return sum(tensor.nbytes for tensor in fake(shapes, dtype, "cpu").values())


def predict(
    make: Callable[[Mapping[str, Tensor]], Step | Reference],
    shapes: Shapes,
    dtype: str,
    device: str,
) -> Prediction:
    """What a step that ``make`` makes of tensors of these shapes would do.

    A compiled function is taken for one operation, which holds nothing but its results: true of
    what the compiler fuses into one loop. Where autograd records it, the compiler decides what
    backward keeps. Then, and where the data decide, this raises ``NotSimulated``. What torch has
    compiled before it forgets.
    """
    torch.compiler.reset()  # a function may be compiled for so many kinds of tensors and no more
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
        except Exception as error:  # of a kernel, which may raise what it likes for want of data
            raise NotSimulated(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        peak = torch_compat.bytes_held(tracker, "peak")
        if isinstance(step, Reference):
            peak += step.gradient_bytes()
        if isinstance(step, ShardedReference):
            tracker.sent = step.sent_bytes()
    return Prediction(peak - before, saved - before, tracker.flops, tracker.moved, tracker.sent)


class _Tracker(torch_compat.memory_tracker()):  # type: ignore[misc]
    """torch's tracker of what is held, which sees too what is multiplied, moved and sent."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.flops = self.moved = self.sent = 0
        self.inside: Traffic | None = None  # of the compiled function that runs

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else torch.compile does nothing while this mode is on

    def run(self, step: Step | Reference) -> int:
        """Forward and backward; what is held between them."""
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
        if body is not None and func.namespace != KERNELS:  # its own steps are seen
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
        """What torch.compile has for a backend here."""

        def run(*args: Any) -> Any:
            given = tensors(args)
            if torch.is_grad_enabled() and any(one.requires_grad for one in given):
                raise NotSimulated("torch.compile decides what backward keeps")
            self.inside = Traffic({storage_id(one) for one in given})
            try:
                results = Interpreter(graph).run(*args)
            finally:
                traffic, self.inside = self.inside, None
            self.moved += traffic.bytes
            for one in results:
                if storage_id(one) not in traffic.given:
                    self.moved += elements(one) * one.itemsize
                one.detach()  # a view of it, by which it is seen
            return results

        return run


class Traffic:
    """What a compiled function reads and writes of the storages that are ``given`` to it, once."""

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
    """What an operation reads and what it writes: its arguments and its results, each once.

    But views are free, of what is indexed only as many elements count as there are indices or
    values to put there, and what is new or overwritten is not read. Our kernel ``scale_`` is taken
    to be given a factor of 1, as in training: it moves nothing then.
    """
    if func.is_view or func.namespace == "prim":
        return [], []
    name = torch_compat.schema_of(func).name.partition("::")[2]
    read, changed = operands(func, args, kwargs)
    written = tensors(result)
    most = {}
    if func.namespace == KERNELS:
        read, written = ([], []) if name == "scale_" else (read, written + changed)
    elif any(other.dtype == torch.int64 for other in read[1:]):
        most = {storage_id(read[0]): max(other.numel() for other in read[1:])}
    if name.startswith("new_") or name.endswith("_like"):
        read = []
    elif name in ("copy_", "fill_", "zero_"):
        read = read[1:]
    if "empty" in name:
        written = []

    def access(one: Tensor) -> Access:
        key = storage_id(one)
        return key, one.itemsize * min(elements(one), most.get(key, one.numel()))

    return list(map(access, read)), list(map(access, written))


def conversions(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an elementwise operation of several dtypes allocates on the CPU, to have but one."""
    if torch.Tag.pointwise not in func.tags:
        return []
    read, written = operands(func, args, kwargs)
    given = [one for one in read if one.dim() and one.dtype != torch.bool]
    if not given:
        return []
    dtype = functools.reduce(torch.promote_types, (one.dtype for one in given))
    return [torch.empty_like(one, dtype=dtype) for one in given + written if one.dtype != dtype]


def operands(func: Any, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors among the arguments that are read, and those that are written to."""
    of_name = {argument.name: argument for argument in torch_compat.schema_of(func).arguments}
    given = [*zip(of_name.values(), args, strict=False)]
    given += [(of_name[name], one) for name, one in kwargs.items()]
    read = [one for argument, one in given if not argument.is_out]
    written = [
        one for argument, one in given if argument.alias_info and argument.alias_info.is_write
    ]
    return tensors(read), tensors(written)


def tensors(tree: Any) -> list[Tensor]:
    return [one for one in torch_compat.tree_leaves(tree) if isinstance(one, Tensor)]


def elements(tensor: Tensor) -> int:
    """How many there are in memory: of an expanded tensor fewer than its shape says."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.itemsize)
