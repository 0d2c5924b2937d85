"""No loss of ours makes the host wait for the GPU, in forward or in backward.

Where there is a GPU, torch itself raises at the first wait. Where there is none, the losses are
called with meta tensors, which have no elements and are not on the CPU: the losses then do as on
CUDA, and what needs an element raises. Of the Triton kernels only the calls are seen so, and of the
compiled functions the source; each is one graph, in which a wait does not compile.
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
    *("triton", "triton_in_place"),
]
LINEAR = ["builtin", "compiled", "chunked_vocab", "fused"]
OURS = [f"logits.{name}" for name in LOGITS] + [f"linear.{name}" for name in LINEAR]
OF_TRITON = {"logits.triton", "logits.triton_in_place", "linear.fused"}  # on CUDA

CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum, weighted, with a bias": {"reduction": "sum", "weight": (V,), "linear_bias": (V,)},
    "none, all else": {
        "reduction": "none",
        "label_smoothing": 0.1,
        "softcap": 30.0,
        "z_loss": 1e-4,
        "ignore_index": 1,
    },
}

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device here to wait for"
)


def loaded(name: str) -> impls.Loss:
    if name in OF_TRITON:
        pytest.importorskip("triton")
    return impls.load(name)


def train(loss: impls.Loss, options: dict[str, Any], device: str, runs: Callable[[], Any]) -> None:
    """Forward and backward of ``loss``, in the context that ``runs`` makes."""
    given = {name: one for name, one in options.items() if name in loss.options}
    given |= {
        name: torch.ones(one, device=device) for name, one in given.items() if type(one) is tuple
    }
    shapes = {"input": (N, V)}
    if loss.level == "linear":
        shapes = {"input": (N, D), "linear_weight": (V, D)}
    tensors = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    leaves = [one.requires_grad_() for one in tensors.values()]
    target = torch.randint(V, (N,), device=device)
    upstream = torch.ones(N if given.get("reduction") == "none" else (), device=device)
    with runs():
        value = loss.fn(**tensors, target=target, **given)
        torch.autograd.grad(value, leaves, upstream)


@contextmanager
def no_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_cuda(loss: impls.Loss, options: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` where forward or backward waits, once all is compiled."""
    for _ in range(2):
        train(loss, options, "cuda", torch.enable_grad)
    train(loss, options, "cuda", no_waits)


class NoWaits(TorchDispatchMode):
    """Raises for the waits that meta tensors allow: a put at a mask, a copy between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
        if "index" in func.__name__ and any(one.dtype == torch.bool for one in before[1:]):
            raise RuntimeError(f"{func} looks for the elements of a mask")
        after = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if len({one.device for one in before + after}) > 1:
            raise RuntimeError(f"{func} is of two devices")
        return result


def on_meta(loss: impls.Loss, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ``RuntimeError`` where forward or backward needs an element."""
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


def kept_of(input, target):
    kept = (target != -100).nonzero().squeeze(1)
    return F.cross_entropy(input[kept], target[kept])


def branching(input, target):
    value = F.cross_entropy(input, target)
    return value if value > 0 else -value


WAITING: dict[str, Callable[..., Tensor]] = {
    "item": lambda input, target: (
        F.cross_entropy(input, target, reduction="sum") / (target != -100).sum().item()
    ),
    "if": branching,
    "item in backward": lambda input, target: WaitsInBackward.apply(F.cross_entropy(input, target)),
    "nonzero": kept_of,
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
def test_a_loss_that_waits_is_seen_on_cuda(kind: str) -> None:
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        on_cuda(waiting(kind), {})


@pytest.mark.parametrize("kind", WAITING)
def test_a_loss_that_needs_an_element_is_seen(kind: str, monkeypatch) -> None:
    seen = "meta tensor|Meta tensors|nonzero|mask|two devices|no data"
    with pytest.raises(RuntimeError, match=seen):
        on_meta(waiting(kind), {}, monkeypatch)


FILTERED = "linear.fused(filter_eps=1e-3)"  # its docstring says that it waits


@needs_cuda
def test_a_filter_waits_for_the_number_of_columns_on_cuda() -> None:
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        on_cuda(loaded(FILTERED), {})


def test_a_filter_needs_the_number_of_columns(monkeypatch) -> None:
    with pytest.raises(NotImplementedError, match="nonzero"):
        on_meta(loaded(FILTERED), {}, monkeypatch)
