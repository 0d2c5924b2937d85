"""What our losses need of torch that is private, or differs between torch versions.

``compile_whole`` is ``torch.compile`` with the same behaviour on each torch that is supported.
``is_fake`` recognises a tensor without elements. Each function has a test in
``tests/benchmarks/measure/test_torch_compat.py``.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

# How many kinds of tensors a function may be compiled for. torch's own limit is 8.
RECOMPILE_LIMIT = 64


def compile_whole(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``fn`` as one graph, for up to 64 kinds of tensors.

    Code that cannot be compiled raises: it never runs uncompiled.
    """
    if torch.__version__ >= "2.13":  # the first torch whose torch.compile takes a limit
        return torch.compile(  # type: ignore[no-any-return, call-overload]
            fn, fullgraph=True, recompile_limit=RECOMPILE_LIMIT
        )
    compiled = torch.compile(fn, fullgraph=True)

    @functools.wraps(fn)
    def with_limit(*args: Any) -> Any:
        # A caller's torch.compile traces this function. It compiles nothing of ours here, and it
        # cannot trace a change of its own settings.
        if torch.compiler.is_compiling():
            return compiled(*args)
        # The setting is global, so it is raised for this call alone. That takes about 10 µs.
        with raised_recompile_limit():
            return compiled(*args)

    return with_limit


def raised_recompile_limit() -> Any:
    """A context in which any function may be compiled for up to 64 kinds of tensors.

    torch has no public setting of this limit for functions that other libraries compile.
    """
    return torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no elements, as in a caller's ``FakeTensorMode``."""
    return isinstance(tensor, FakeTensor)
