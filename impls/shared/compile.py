"""What the losses need of torch that is private, or that torch versions differ in.

``torch.compile`` as our losses want it, the same on every torch that is supported; and whether a
tensor is a fake one. ``tests/benchmarks/measure/test_torch_compat.py`` has a test of each.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

RECOMPILE_LIMIT = 64  # kinds of tensors that one function may be compiled for; torch's own is 8


def compile_whole(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` compiled as one graph, for up to 64 kinds of tensors.

    What cannot be compiled raises: it never runs uncompiled.
    """
    if torch.__version__ >= "2.13":  # the first torch.compile that takes a limit
        return torch.compile(  # type: ignore[no-any-return, call-overload]
            fn, fullgraph=True, recompile_limit=RECOMPILE_LIMIT
        )
    compiled = torch.compile(fn, fullgraph=True)

    @functools.wraps(fn)
    def with_limit(*args: Any) -> Any:
        # A caller's torch.compile traces through here: it compiles nothing of ours, and it cannot
        # trace a change of its own settings.
        if torch.compiler.is_compiling():
            return compiled(*args)
        # The setting is global, so it is raised for this call alone. That takes about 10 µs.
        with raised_recompile_limit():
            return compiled(*args)

    return with_limit


def raised_recompile_limit() -> Any:
    """A context in which any function may be compiled for up to 64 kinds of tensors.

    torch has no public setting of this limit for functions that others compile.
    """
    return torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no elements, as in a caller's ``FakeTensorMode``."""
    return isinstance(tensor, FakeTensor)
