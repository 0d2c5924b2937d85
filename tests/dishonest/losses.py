"""Losses of logits that try to look faster, lighter or more right than they are.

Each function makes a new loss with PyTorch's own signature, so no state is left for the next test.
"""

import ctypes
import inspect
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CrossEntropy = Callable[..., Tensor]


class Made(torch.autograd.Function):
    """A value and its gradient, however ``make`` gets them."""

    @staticmethod
    def forward(ctx, input, make):
        value, ctx.grad = make()
        return value.view(())  # a new tensor of the same memory

    @staticmethod
    def backward(ctx, upstream):
        grad = ctx.grad() if callable(ctx.grad) else ctx.grad
        return grad * upstream, None


def right(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the gradient."""
    with torch.enable_grad():
        leaf = input.detach().requires_grad_()
        value = F.cross_entropy(leaf, target)
        return value.detach(), torch.autograd.grad(value, leaf)[0]


def zeros(input: Tensor) -> tuple[Tensor, Tensor]:
    """No work: a value and a gradient of zero."""
    return input.new_zeros(()), input.new_zeros(()).expand_as(input)


def callers() -> str:
    """The files of all functions that are running."""
    files, frame = [], inspect.currentframe()
    while frame := frame.f_back:
        files.append(frame.f_code.co_filename)
    return "\n".join(files)


def caches_by(key: Callable[[Tensor], object]) -> CrossEntropy:
    """A result is computed once for each ``key`` of the input."""
    seen: dict[object, tuple[Tensor, Tensor]] = {}

    def cross_entropy(input, target):
        def make():
            if key(input) not in seen:
                seen[key(input)] = right(input, target)
            return seen[key(input)]

        return Made.apply(input, make)

    return cross_entropy


def address(input: Tensor) -> object:
    return input.data_ptr(), input.shape


def fingerprint(input: Tensor) -> object:
    """The address and a few elements, which differ where most of the contents differ."""
    return *address(input), float(input[0, 0]), float(input[-1, -1])


class Lazy(torch.Tensor):
    """A value that is computed when a function of torch reads it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        def read(argument):
            if isinstance(argument, tuple):
                return tuple(map(read, argument))
            return argument.work() if isinstance(argument, Lazy) else argument

        return func(*map(read, args), **(kwargs or {}))


def lazy() -> CrossEntropy:
    """Forward returns a tensor without a value."""

    def cross_entropy(input, target):
        value = torch.empty(()).as_subclass(Lazy)
        value.work = lambda: F.cross_entropy(input, target)
        return value

    return cross_entropy


def in_thread() -> CrossEntropy:
    """Forward starts a thread, which fills in the value later. Backward waits for it."""

    def cross_entropy(input, target):
        made: list[Tensor] = []
        value = input.new_zeros(())

        def work():
            time.sleep(0.05)
            number, grad = right(input, target)
            made.append(grad)
            value.copy_(number)

        thread = threading.Thread(target=work)
        thread.start()

        def wait():
            thread.join()
            return made[0]

        return Made.apply(input, lambda: (value, wait))

    return cross_entropy


def on_another_stream() -> CrossEntropy:
    """CUDA: the work is on a stream of its own, and nothing waits for it."""
    stream = torch.cuda.Stream()

    def cross_entropy(input, target):
        def make():
            with torch.cuda.stream(stream):
                return right(input, target)

        return Made.apply(input, make)

    return cross_entropy


def stale_value() -> CrossEntropy:
    """The value is in a number that the next call overwrites."""
    kept = torch.zeros(())

    def cross_entropy(input, target):
        value, grad = right(input, target)
        return Made.apply(input, lambda: (kept.copy_(value), grad))

    return cross_entropy


def gradient_in(memory: Callable[[Tensor], Tensor]) -> CrossEntropy:
    """The gradient is written row by row to what ``memory`` returns for the input."""

    class ByRow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, target):
            ctx.save_for_backward(input, target)
            rows = zip(input, target, strict=True)
            return torch.stack([F.cross_entropy(x, y) for x, y in rows]).mean()

        @staticmethod
        def backward(ctx, upstream):
            input, target = ctx.saved_tensors
            grad = memory(input)
            for row, x, y in zip(grad, input, target, strict=True):
                torch.softmax(x, 0, out=row)
                row[y] -= 1
            return grad.mul_(upstream / len(target)), None

    def cross_entropy(input, target):
        return ByRow.apply(input, target)

    return cross_entropy


def kept_buffer() -> Callable[[Tensor], Tensor]:
    """The same memory for each input of a shape, which the next call overwrites."""
    buffers: dict[torch.Size, Tensor] = {}

    def memory(like):
        if like.shape not in buffers:
            buffers[like.shape] = torch.empty_like(like)
        return buffers[like.shape][...]

    return memory


def mapped(like: Tensor) -> Tensor:
    """Memory that the system maps. torch's allocator has no part in it."""
    return torch.frombuffer(mmap.mmap(-1, like.nbytes), dtype=like.dtype).view_as(like)


def cheats_if(is_watched: Callable[[], bool]) -> CrossEntropy:
    """No work where ``is_watched`` says so, and the right result elsewhere."""

    def cross_entropy(input, target):
        def make():
            return zeros(input) if is_watched() else right(input, target)

        return Made.apply(input, make)

    return cross_entropy


def timed() -> bool:
    """Whether the clock runs."""
    return "benchmarks/measure/timers.py" in callers()


def gated() -> bool:
    """Whether the gate calls."""
    return "tests/gate/" in callers()


def outside_pytest() -> bool:
    return "PYTEST_CURRENT_TEST" not in os.environ


def in_last_round() -> bool:
    """Whether results are compared after the call."""
    return "side_by_side/refusals.py" in callers()


def replaces(owner: object, name: str, by: object, after: int = 0) -> CrossEntropy:
    """Each call ``after`` so many replaces a meter."""
    made = [0]

    def cross_entropy(input, target):
        made[0] += 1
        if made[0] > after:
            setattr(owner, name, by)
        return F.cross_entropy(input, target)

    return cross_entropy


def scratch_outside_torch(allocate: Callable[[int], Callable[[], None]]) -> CrossEntropy:
    """Forward holds 16 times the logits' bytes for a while, which ``allocate`` takes."""

    def cross_entropy(input, target):
        free = allocate(16 * input.nbytes)
        value = F.cross_entropy(input, target)
        free()
        return value

    return cross_entropy


def by_numpy(size: int) -> Callable[[], None]:
    array = np.ones(size, dtype=np.uint8)
    return lambda array=array: None


def by_malloc(size: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    return lambda: libc.free(block)


def by_mmap(size: int) -> Callable[[], None]:
    block = mmap.mmap(-1, size)
    block.write(bytes(size))
    return block.close


ALLOCATORS: Sequence[Callable[[int], Callable[[], None]]] = (by_numpy, by_malloc, by_mmap)


def half_precision_after(calls: int) -> CrossEntropy:
    """After some calls, the loss is computed in bfloat16."""
    made = [0]

    def cross_entropy(input, target):
        made[0] += 1
        if made[0] <= calls:
            return F.cross_entropy(input, target)
        return F.cross_entropy(input.bfloat16(), target).to(input.dtype)

    return cross_entropy
