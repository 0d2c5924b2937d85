"""No loss of ours makes the host wait for the GPU, in forward or in backward.

With a GPU, torch itself raises at the first wait. Without a GPU, the losses run on meta tensors.
These have no elements and are not on the CPU, so the losses run as on CUDA, and code that needs an
element raises. That does not see into the Triton kernels. Compiled functions run uncompiled; each
compiles to one graph, and a wait does not compile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import impls
from benchmarks.measure.torch_compat import TorchDispatchMode, tree_leaves
from impls.shared import chunks

N, V, D = 1000, 5000, 64  # three chunks of tokens, two slices of the vocabulary

LOGITS = [
    *("builtin", "eager", "compiled", "chunked_vocab", "fused", "fused_in_place"),
    *("native", "native_in_place", "triton", "triton_in_place"),
]
LINEAR = ["builtin", "compiled", "chunked_vocab", "fused"]
LOGPROBS = ["builtin", "eager", "chunked", "fused"]
OURS = [
    f"{level}.{name}"
    for level, names in (("logits", LOGITS), ("linear", LINEAR), ("logprobs", LOGPROBS))
    for name in names
]
NEEDS_TRITON = {"logits.triton", "logits.triton_in_place", "linear.fused", "logprobs.fused"}  # CUDA

CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum, weighted, with a bias": {"reduction": "sum", "weight": (V,), "linear_bias": (V,)},
    "none, all else": {
        "reduction": "none",
        "label_smoothing": 0.1,
        "softcap": 30.0,
        "z_loss": 1e-4,
        "temperature": 0.7,
        "entropy": True,
        "ignore_index": 1,
    },
}

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device here to wait for"
)


def loaded(name: str) -> impls.Loss:
    if name in NEEDS_TRITON:
        pytest.importorskip("triton")
    return impls.load(name)


def train(loss: impls.Loss, options: dict[str, Any], device: str, runs: Callable[[], Any]) -> None:
    """Forward and backward of ``loss``, in the context that ``runs`` makes.

    An option that is a tuple is the shape of a tensor.
    """
    given = {name: option for name, option in options.items() if name in loss.options}
    given |= {
        name: torch.ones(option, device=device)
        for name, option in given.items()
        if type(option) is tuple
    }
    shapes = {"input": (N, V)}
    if loss.level != "logits":
        shapes = {"input": (N, D), "linear_weight": (V, D)}
    tensors = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    target = torch.randint(V, (N,), device=device)
    with runs():
        value = loss.fn(**tensors, target=target, **given)
        results = value if isinstance(value, tuple) else (value,)
        torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])


@contextmanager
def no_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_cuda(loss: impls.Loss, options: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` if forward or backward waits after everything is compiled."""
    for _ in range(2):
        train(loss, options, "cuda", torch.enable_grad)
    train(loss, options, "cuda", no_waits)


class NoWaits(TorchDispatchMode):
    """Raise for the waits that meta tensors allow: indexing by a mask, a copy between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if "index" in func.__name__ and any(tensor.dtype == torch.bool for tensor in given[1:]):
            raise RuntimeError(f"{func} looks for the elements of a mask")
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in given + made}) > 1:
            raise RuntimeError(f"{func} is on two devices")
        return result


def on_meta(loss: impls.Loss, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ``RuntimeError`` if forward or backward needs an element."""
    monkeypatch.setattr(chunks, "INTERPRETED", True)  # the Triton kernel, as on CUDA
    # A meta tensor has no autocast, and asking for it raises.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    with torch.compiler.set_stance("force_eager"):
        train(loss, options, "meta", NoWaits)


@needs_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OURS)
def test_no_loss_waits_on_cuda(name: str, case: str) -> None:
    on_cuda(loaded(name), CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OURS)
def test_no_loss_needs_an_element(name: str, case: str, monkeypatch) -> None:
    on_meta(loaded(name), CASES[case], monkeypatch)


class WaitsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream if upstream.item() == 1 else 2 * upstream


def select_counted(input, target):
    rows = (target != -100).nonzero().squeeze(1)
    return F.cross_entropy(input[rows], target[rows])


def branch_on_value(input, target):
    value = F.cross_entropy(input, target)
    return value if value > 0 else -value


WAITING: dict[str, Callable[..., Tensor]] = {
    "item": lambda input, target: (
        F.cross_entropy(input, target, reduction="sum") / (target != -100).sum().item()
    ),
    "if": branch_on_value,
    "item in backward": lambda input, target: WaitsInBackward.apply(F.cross_entropy(input, target)),
    "nonzero": select_counted,
    "mask": lambda input, target: F.cross_entropy(input[target != -100], target[target != -100]),
    "put at a mask": lambda input, target: F.cross_entropy(
        input.index_put((target == -100,), input[:1]), target
    ),
    "masked_select": lambda input, target: (
        F.cross_entropy(input, target, reduction="none").masked_select(target != -100).mean()
    ),
    "to the CPU": lambda input, target: F.cross_entropy(input.cpu(), target.cpu()).to(input.device),
    "from the CPU": lambda input, target: F.cross_entropy(
        input, target, torch.ones(V).to(input.device)
    ),
}


def waiting(kind: str) -> impls.Loss:
    return impls.Loss(f"logits.{kind}", "logits", WAITING[kind], impls.Support(), "")


@needs_cuda
@pytest.mark.parametrize("kind", WAITING)
def test_a_wait_is_noticed_on_cuda(kind: str) -> None:
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        on_cuda(waiting(kind), {})


@pytest.mark.parametrize("kind", WAITING)
def test_a_need_of_an_element_is_noticed(kind: str, monkeypatch) -> None:
    message = "meta tensor|Meta tensors|nonzero|mask|two devices|no data"
    with pytest.raises(RuntimeError, match=message):
        on_meta(waiting(kind), {}, monkeypatch)


FILTERED = "linear.fused(filter_eps=1e-3)"  # waits, as its docstring says


@needs_cuda
def test_a_filter_waits_for_the_number_of_columns_on_cuda() -> None:
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        on_cuda(loaded(FILTERED), {})


def test_a_filter_needs_the_number_of_columns(monkeypatch) -> None:
    with pytest.raises(NotImplementedError, match="nonzero"):
        on_meta(loaded(FILTERED), {}, monkeypatch)
