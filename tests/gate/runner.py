"""The gate: properties of a right cross entropy, each a function that raises if a loss lacks it.

A property is tried on cases from small to large, so the first to fail is the smallest. Errors are
held to a budget: twice that of PyTorch's own loss at the same precision, plus rounding.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import SkipTest

import hypothesis
import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor

import impls
from benchmarks.measure import oracle
from impls.loss import INTERPRETED

# For allclose, relative to the largest element. The budget is tighter, but this one stands alone.
RTOL = {"float64": 1e-10, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}

Tensors = dict[str, Tensor]


class Wrong(AssertionError):
    """A property that the loss lacks, in plain words, with the case that shows it."""


@dataclass(frozen=True)
class Case:
    """A call: sizes, dtype and options, from which seeded tensors follow."""

    n: int = 5
    v: int = 11
    d: int = 7
    dtype: str = "float32"
    reduction: str = "mean"
    label_smoothing: float = 0.0
    weighted: bool = False
    ignore_index: int = -100
    ignored: tuple[int, ...] = ()  # which rows
    softcap: float | None = None
    z_loss: float = 0.0
    scale: float = 1.0  # of the logits
    seed: int = 0

    def fit(self, loss: impls.Loss) -> "Case":
        """This case in a dtype that the loss has: its own or, failing that, the loss's first."""
        dtypes = loss.support.dtypes
        return self if self.dtype in dtypes else replace(self, dtype=dtypes[0])

    def tensors(self, loss: impls.Loss) -> Tensors:
        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        if loss.level == "logits":
            tensors = {"input": self.scale * normal(self.n, self.v)}
        else:
            tensors = {
                "input": self.scale * normal(self.n, self.d),
                "linear_weight": normal(self.v, self.d) / self.d**0.5,
            }
            if "linear_bias" in loss.options:
                tensors["linear_bias"] = normal(self.v)
        target = torch.randint(self.v, (self.n,), generator=generator)
        if "ignore_index" in loss.options:
            target[list(self.ignored)] = self.ignore_index
        if self.weighted and "weight" in loss.options:
            tensors["weight"] = torch.rand(self.v, generator=generator) + 0.1
        device = loss.support.devices[0]
        converted = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return {**converted, "target": target.to(device)}

    def options(self, loss: impls.Loss) -> dict[str, Any]:
        """The options of this case that the loss has."""
        return {
            name: getattr(self, name)
            for name in ("reduction", "label_smoothing", "ignore_index", "softcap", "z_loss")
            if name in loss.options
        }

    def upstream(self) -> Tensor:
        """A random gradient of the loss's value."""
        shape = (self.n,) if self.reduction == "none" else ()
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(shape, generator=generator).to(getattr(torch, self.dtype))

    def __str__(self) -> str:
        default = Case()
        said = [f"N={self.n}", f"V={self.v}", self.dtype, f"reduction={self.reduction!r}"]
        for name in (
            *("label_smoothing", "weighted", "ignore_index", "ignored"),
            *("softcap", "z_loss", "scale"),
        ):
            if getattr(self, name) != getattr(default, name):
                said.append(f"{name}={getattr(self, name)}")
        return ", ".join(said)


def judge(loss: impls.Loss, case: Case, tensors: Tensors | None = None, about: str = "") -> None:
    """Raise ``Wrong`` unless value and gradients are within the budget of those of the oracle."""
    case = case.fit(loss)
    tensors = tensors or case.tensors(loss)
    options, upstream = case.options(loss), case.upstream()
    where = f"{case}{about and '; ' + about}"
    native = oracle.evaluate(NATIVE[loss.level], tensors, upstream, **options)
    expected = oracle.expected(loss.level, tensors, upstream, **options)
    scales = natural_scales(tensors, upstream, options)
    # Last: a loss that overwrites its arguments must not spoil what it is held against.
    actual = call(lambda: oracle.evaluate(loss.fn, tensors, upstream, **options), where)
    for name, right in expected.items():
        numbers = actual[name], native[name], right
        compare(*numbers, scales[name], name, case.dtype, case.v, where)
        if loss.level == "logits" and name == "input":
            # The target's entry, near -1, hides all others from a norm, and they do not cancel.
            others = torch.ones_like(right, dtype=torch.bool)
            others[range(case.n), tensors["target"].clamp(0, case.v - 1)] = False
            parts = (tensor * others for tensor in (actual[name], native[name], right))
            what = "input, but for the target's entries"
            compare(*parts, None, what, case.dtype, case.v, where)


def native_cross_entropy(input, target, weight=None, *, softcap=None, z_loss=0.0, **options):
    """PyTorch's own loss, and by PyTorch's own functions the options that it lacks."""
    x = input if softcap is None else softcap * torch.tanh(input / softcap)
    value = F.cross_entropy(x, target, weight, **options)
    if not z_loss:
        return value
    counted = target != options.get("ignore_index", -100)
    squares = z_loss * x.logsumexp(1).square() * counted
    if options.get("reduction") == "none":
        return value + squares
    if options.get("reduction") == "sum":
        return value + squares.sum()
    w = counted if weight is None else weight[target * counted] * counted
    return value + squares.sum() / w.sum()


def native_linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, **options):
    return native_cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


NATIVE = {"logits": native_cross_entropy, "linear": native_linear_cross_entropy}


def natural_scales(tensors: Tensors, upstream: Tensor, options: Mapping[str, Any]) -> Tensors:
    """How large value and gradients are before anything cancels: those where all logits are 0.

    p - 1 for a p near 1 is small, and its error is that of a number near 1.
    """
    weight = tensors.get("linear_weight")
    x = tensors["input"].double()
    logits = x if weight is None else x @ weight.double().T
    kept = {name: tensors[name] for name in ("target", "weight") if name in tensors}
    zero = {"input": torch.zeros_like(logits), **kept}
    at_zero = oracle.expected("logits", zero, upstream, **options)
    value, grad = at_zero["value"].abs(), at_zero["input"].abs()
    finite = logits.masked_fill(~logits.isfinite(), 0)
    largest = finite.abs().max() if finite.numel() else finite.sum()
    scales = {"value": value * (1 + largest), "input": grad}
    if weight is not None:
        scales |= {"input": grad @ weight.double().abs(), "linear_weight": grad.T @ x.abs()}
        scales["linear_bias"] = grad.sum(0)
    return scales


def compare(
    actual: Tensor,
    native: Tensor,
    expected: Tensor,
    scale: Tensor | None,
    name: str,
    dtype: str,
    terms: int,
    where: str,
) -> None:
    """Raise ``Wrong`` unless ``actual`` is as near to ``expected`` as the budget asks.

    A sum of n ``terms`` is off by about √n roundings where a CPU without vector instructions adds
    the terms in order, so the band grows with √n. Half precision is summed in float32.
    """
    growth = 1 + terms**0.5 / 32 if dtype in ("float32", "float64") else 1.0
    what = "the value" if name == "value" else f"the gradient of {name}"
    if actual.shape != expected.shape:
        raise Wrong(
            f"{what} has shape {tuple(actual.shape)}, not {tuple(expected.shape)} ({where})"
        )
    if str(actual.dtype) != f"torch.{dtype}":
        raise Wrong(f"{what} is {actual.dtype}, not {dtype} ({where})")
    # One row alone may have less luck than PyTorch's in its rounding than all of them together.
    for norm, distance, bands in (
        ("", oracle.error, 1),
        (" in its worst row", oracle.worst_row, 4),
    ):
        found, theirs = distance(actual, expected, scale), distance(native, expected, scale)
        allowed = oracle.budget(theirs, dtype, bands * growth)
        if not found <= allowed:
            raise Wrong(
                f"{what} is off by {found:.2g}{norm}, of which {allowed:.2g} is allowed "
                f"(PyTorch's own: {theirs:.2g}; {where})"
            )
    largest = max(
        (
            float(t[t.isfinite()].abs().max())
            for t in (expected, scale)
            if t is not None and t.numel()
        ),
        default=0.0,
    )
    atol = RTOL[dtype] * largest
    if not torch.allclose(
        actual.double(), expected.double(), rtol=RTOL[dtype], atol=atol, equal_nan=True
    ):
        raise Wrong(f"{what} is not allclose to the oracle's ({where})")


def tolerance(loss: impls.Loss, float32: float) -> float:
    """The relative error allowed of a loss of which ``float32`` is, if it has that dtype.

    Without it, the properties are tried in its first dtype, which rounds more.
    """
    dtype = Case().fit(loss).dtype
    return float32 if dtype == "float32" else max(float32, 2 * oracle.BAND[dtype])


def call(run: Callable[[], Any], where: str) -> Any:
    """What ``run()`` returns; ``Wrong`` if it raises, saying what."""
    try:
        return run()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise Wrong(f"it raises {type(error).__name__}: {reason} ({where})") from error


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


# ---- The properties. Each docstring's first line is what a report says of one that fails.


def check_options(loss: impls.Loss) -> None:
    """Value and gradients are right for every reduction, smoothing, class weights, ignored rows."""
    for label_smoothing, weighted, reduction in itertools.product(
        (0.0, 0.1), (False, True), ("mean", "sum", "none")
    ):
        judge(
            loss,
            Case(
                reduction=reduction,
                label_smoothing=label_smoothing,
                weighted=weighted,
                ignored=(1, 3),
            ),
        )


def check_softcap_and_z_loss(loss: impls.Loss) -> None:
    """With a softcap the logits are c tanh(x/c); z_loss adds z lse², reduced as the loss is."""
    offered = [name for name in ("softcap", "z_loss") if name in loss.options]
    if not offered:
        raise SkipTest("neither softcap nor z_loss")
    for reduction, weighted in itertools.product(("mean", "sum", "none"), (False, True)):
        case = Case(reduction=reduction, weighted=weighted, ignored=(1,), scale=3.0).fit(loss)
        for name, value in (("softcap", 2.0), ("z_loss", 0.05)):
            if name in offered:
                judge(loss, replace(case, **{name: value}))
    both = Case(softcap=5.0, z_loss=1e-3, label_smoothing=0.1, n=6, v=37, scale=10.0)
    for dtype in loss.support.dtypes:
        judge(loss, replace(both, dtype=dtype))


def check_dtypes(loss: impls.Loss) -> None:
    """Value and gradients are as precise as the dtype allows, in each dtype."""
    for dtype in loss.support.dtypes:
        judge(loss, Case(dtype=dtype, n=6, v=37))
        judge(loss, Case(dtype=dtype, n=6, v=37, reduction="none", weighted=True, ignored=(2,)))
        judge(loss, Case(dtype=dtype, n=6, v=37, label_smoothing=0.2, scale=4.0))
        judge(loss, Case(dtype=dtype, n=100 if INTERPRETED else 2000, v=37, reduction="sum"))
        judge(loss, Case(dtype=dtype, n=4, v=5003))
        if not INTERPRETED:
            judge(loss, Case(dtype=dtype, n=600, v=5003))


def check_sizes(loss: impls.Loss) -> None:
    """It is right for every number of rows and classes: one, primes, around powers of two."""
    for n, v in itertools.product((1, 2), (1, 2, 3)):
        judge(loss, Case(n=n, v=v))
    for v in (31, 32, 33, 127, 128, 129, 255, 256, 257, 1000, 1021, 1024):
        judge(loss, Case(n=3, v=v))
    judge(loss, Case(n=37, v=67))
    if INTERPRETED:  # which takes minutes for larger ones
        return
    for v in (4095, 4096, 4097):
        judge(loss, Case(n=3, v=v))
    for v in (8191, 8192, 8193, 50257, 65535, 65536, 65537, 70001):
        judge(loss, Case(n=2, v=v))
    judge(loss, Case(n=1037, v=67))
    judge(loss, Case(n=33, v=9001, label_smoothing=0.1, weighted=True, ignored=(0, 5)))


def check_first_and_last(loss: impls.Loss) -> None:
    """The first and the last class, as targets, are like any other."""
    for v in (2, 11, 4099):
        case = Case(n=4, v=v, reduction="none").fit(loss)
        tensors = case.tensors(loss)
        tensors["target"] = tensors["target"].new_tensor([0, v - 1, v - 1, 0])
        judge(loss, case, tensors, "targets 0 and V-1")


def check_upstream(loss: impls.Loss) -> None:
    """The upstream gradient is used: each row's own, whatever its size or sign."""
    case = Case(reduction="none").fit(loss)
    tensors = case.tensors(loss)
    for factor in (1.0, -3.0, 1e-4, 1e4):
        grads = gradients(loss, case, tensors, factor * case.upstream())
        right = oracle.expected(loss.level, tensors, factor * case.upstream(), **case.options(loss))
        for name, grad in grads.items():
            expect(
                oracle.error(grad, right[name]) < tolerance(loss, 1e-4),
                f"the gradient of {name} is wrong for an upstream gradient of {factor:g} × normal "
                f"({case})",
            )
    one = torch.zeros(case.n)
    one[2] = 1.0
    grad = gradients(loss, case, tensors, one)["input"]
    expect(
        grad[2].abs().sum() > 0 and not grad[[0, 1, 3, 4]].any(),
        f"with an upstream gradient for row 2 alone, other rows have one ({case})",
    )
    judge(loss, replace(case, n=1))
    for reduction in ("mean", "sum"):
        scalar = Case(reduction=reduction).fit(loss)
        once = gradients(loss, scalar, tensors, torch.tensor(1.0))
        tripled = gradients(loss, scalar, tensors, torch.tensor(3.0))
        for name, grad in once.items():
            expect(
                oracle.error(tripled[name], 3 * grad) < tolerance(loss, 1e-5),
                f"three times the upstream gradient is not three times that of {name} ({scalar})",
            )


def check_ignored(loss: impls.Loss) -> None:
    """Ignored rows count nothing, wherever they are and whatever number marks them."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no option ignore_index")
    for ignored in ((0,), (4,), (0, 1, 2), (1, 2, 3, 4)):
        for reduction in ("mean", "sum", "none"):
            judge(loss, Case(ignored=ignored, reduction=reduction))
    for ignore_index in (-1, 0, 5, 10, 255):
        judge(loss, Case(ignored=(1, 2), ignore_index=ignore_index))
        judge(loss, Case(ignored=(0,), ignore_index=ignore_index, weighted=True))
        judge(loss, Case(ignored=(3,), ignore_index=ignore_index, label_smoothing=0.1))
    case = Case(ignored=(0, 3), reduction="none").fit(loss)
    grad = gradients(loss, case, case.tensors(loss), case.upstream())["input"]
    expect(not grad[[0, 3]].any(), f"an ignored row has a gradient ({case})")
    expect(grad[[1, 2, 4]].any(1).all(), f"a row that is not ignored has no gradient ({case})")


def check_all_ignored(loss: impls.Loss) -> None:
    """All rows ignored: the mean is nan, the sum 0, as torch has it; sums have zero gradients."""
    if "ignore_index" not in loss.options:
        raise SkipTest("no option ignore_index")
    for smoothing in (0.0, 0.1):
        for reduction, right in (("mean", float("nan")), ("sum", 0.0), ("none", [0.0] * 5)):
            case = Case(
                ignored=(0, 1, 2, 3, 4), reduction=reduction, label_smoothing=smoothing
            ).fit(loss)
            same_value(loss, case, case.tensors(loss), right)
            if reduction != "mean":
                grads = gradients(loss, case, case.tensors(loss), case.upstream())
                expect(not grads["input"].any(), f"ignored rows have a gradient ({case})")


def check_empty(loss: impls.Loss) -> None:
    """No rows: the mean is nan, the sum 0, and every gradient has its shape, all zero."""
    for reduction, right in (("mean", float("nan")), ("sum", 0.0), ("none", [])):
        case = Case(n=0, reduction=reduction).fit(loss)
        tensors = case.tensors(loss)
        same_value(loss, case, tensors, right)
        if reduction != "mean":
            for name, grad in gradients(loss, case, tensors, case.upstream()).items():
                expect(
                    grad.shape == tensors[name].shape and not grad.any(),
                    f"the gradient of {name} is not zeros of its shape ({case})",
                )


def check_extreme_logits(loss: impls.Loss) -> None:
    """Logits of ±1e4, of -inf (not the target's), or 100 higher: no overflow, no lost precision."""
    judge(loss, Case(scale=30.0))
    if loss.level == "logits":
        for dtype in loss.support.dtypes:
            case = Case(n=4, v=33, dtype=dtype)
            tensors = case.tensors(loss)
            high = {**tensors, "input": tensors["input"].sign() * 1e4}
            judge(loss, case, high, "logits of ±1e4")
            shifted = {**tensors, "input": tensors["input"] + 100}
            judge(loss, case, shifted, "logits 100 higher")
            apart = 1000 * tensors["input"].new_tensor([[0], [1], [-4], [4]])
            each = {**tensors, "input": tensors["input"] + apart}
            judge(loss, case, each, "each row thousands from the others")
        for columns in (slice(0, 3), slice(20, 33), slice(0, 31)):
            case = Case(n=4, v=33, reduction="none").fit(loss)
            tensors = case.tensors(loss)
            tensors["target"] = tensors["target"].new_tensor([31, 32, 31, 32])
            mask = torch.zeros(33, dtype=torch.bool, device=tensors["input"].device)
            mask[columns] = True
            mask[31:] = False
            tensors["input"] = tensors["input"].masked_fill(mask, float("-inf"))
            judge(loss, case, tensors, "some logits -inf")
        case = Case(n=2, v=9000).fit(loss)
        tensors = case.tensors(loss)
        tensors["target"] = tensors["target"].new_tensor([8999, 8998])
        tensors["input"][:, :8990] = float("-inf")
        judge(loss, case, tensors, "the first 8990 logits -inf")
    elif "linear_bias" in loss.options:
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        judge(loss, case, {**tensors, "linear_bias": tensors["linear_bias"] + 100}, "bias + 100")
        tensors["linear_bias"][:5] = float("-inf")
        tensors["target"] = tensors["target"] % 6 + 5
        tensors["linear_bias"][5:].requires_grad_(False)
        value = loss.fn(**tensors, **case.options(loss))
        right = oracle.linear_cross_entropy(**tensors, **case.options(loss))
        expect(
            oracle.error(value, right) < tolerance(loss, 1e-5),
            f"the value is wrong where a bias is -inf ({case})",
        )


def check_strides(loss: impls.Loss) -> None:
    """Arguments need not be contiguous: transposed, sliced, expanded, offset."""
    case = Case(n=6, v=12, d=8, reduction="none").fit(loss)
    for name in ("input", "linear_weight"):
        tensors = case.tensors(loss)
        if name not in tensors:
            continue
        tensor = tensors[name]
        for about, view in {
            "transposed": tensor.T.contiguous().T,
            "every second column of a wider one": tensor.repeat_interleave(2, 1)[:, ::2],
            "every second row of a longer one": tensor.repeat_interleave(2, 0)[::2],
            "part of a larger one": torch.nn.functional.pad(tensor, (3, 2, 1, 4))[1:-4, 3:-2],
            "one column expanded": tensor[:, :1].expand_as(tensor),
        }.items():
            judge(loss, case, {**tensors, name: view}, f"{name} {about}")
    tensors = case.tensors(loss)
    strided = tensors["target"].repeat_interleave(3)[::3]
    judge(loss, case, {**tensors, "target": strided}, "target every third of a longer one")
    expanded = tensors["target"][:1].expand(6)
    judge(loss, case, {**tensors, "target": expanded}, "target expanded")
    judge_upstream = tensors["input"].new_tensor(0.5).expand(6)
    right = oracle.expected(loss.level, tensors, judge_upstream, **case.options(loss))
    for name, grad in gradients(loss, case, tensors, judge_upstream).items():
        expect(
            oracle.error(grad, right[name]) < tolerance(loss, 1e-5),
            f"the gradient of {name} is wrong for an expanded upstream gradient ({case})",
        )


def check_out_of_range(loss: impls.Loss) -> None:
    """A target outside [0, V) that is not ignored raises IndexError, naming it, on the CPU."""
    if loss.support.devices[0] != "cpu":
        raise SkipTest("on CUDA, as in torch, the kernel asserts, and takes the process with it")
    for value in (11, 12, 1000, -1, -7, -101):
        case = Case().fit(loss)
        tensors = case.tensors(loss)
        tensors["target"][2] = value
        raises(IndexError, loss, case, tensors, str(value))


def check_mismatches(loss: impls.Loss) -> None:
    """Shapes or dtypes that do not go together raise ValueError, with both in the message."""
    case = Case(weighted=True).fit(loss)
    tensors = case.tensors(loss)
    raises(ValueError, loss, case, {**tensors, "target": tensors["target"][:3]}, "5", "3")
    wrong_dtype = {**tensors, "target": tensors["target"].float()}
    raises(ValueError, loss, case, wrong_dtype, "float32", "int64")
    if "weight" in tensors:
        raises(ValueError, loss, case, {**tensors, "weight": tensors["weight"][:4]}, "11", "4")
        other = {**tensors, "weight": tensors["weight"].double()}
        raises(ValueError, loss, case, other, case.dtype, "float64")
    if "linear_weight" in tensors:
        narrow = {**tensors, "linear_weight": tensors["linear_weight"][:, :4]}
        raises(ValueError, loss, case, narrow, "7", "4")
        other = {**tensors, "linear_weight": tensors["linear_weight"].double()}
        raises(ValueError, loss, case, other, case.dtype, "float64")
    if "reduction" in loss.options:
        raises(ValueError, loss, replace(case, reduction="average"), tensors, "average")


def check_arguments_untouched(loss: impls.Loss) -> None:
    """No argument is overwritten, in forward or in backward, but the input if that is declared."""
    case = Case(weighted=True, ignored=(1,), label_smoothing=0.1).fit(loss)
    tensors = case.tensors(loss)
    own = ("input",) if loss.support.overwrites_input else ()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    upstream = case.upstream().to(tensors["input"])  # as it is given: no copy is made of this one
    given = upstream.clone()
    gradients(loss, case, tensors, upstream)
    for name in tensors.keys() - own:
        expect(torch.equal(tensors[name], before[name]), f"{name} is overwritten ({case})")
    expect(torch.equal(upstream, given), f"the upstream gradient is overwritten ({case})")


def check_backward_twice(loss: impls.Loss) -> None:
    """With retain_graph, a second backward gives the same gradients, or raises: never others."""
    for reduction in ("mean", "none"):
        case = Case(reduction=reduction).fit(loss)
        gradients(loss, case, case.tensors(loss), case.upstream())  # once it must not raise
        value, leaves = forward(loss, case, case.tensors(loss))
        try:
            first = grads_of(value, leaves, case.upstream(), retain_graph=True)
            kept = [grad.clone() for grad in first]
            second = grads_of(value, leaves, case.upstream())
        except RuntimeError:  # what torch.compile makes of retain_graph
            continue
        for name, a, b, c in zip(leaves, kept, second, first, strict=True):
            expect(torch.equal(a, b), f"the second backward's gradient of {name} differs ({case})")
            expect(torch.equal(a, c), f"the second backward overwrites {name}'s first ({case})")


def check_no_stale_state(loss: impls.Loss) -> None:
    """Two losses alive at once do not disturb each other, nor what the first has returned."""
    a, b = Case(seed=1).fit(loss), Case(seed=2).fit(loss)
    alone = gradients(loss, a, a.tensors(loss), a.upstream())
    kept = {name: grad.clone() for name, grad in alone.items()}
    value_a, leaves_a = forward(loss, a, a.tensors(loss))
    value_b, leaves_b = forward(loss, b, b.tensors(loss))
    grads_a = grads_of(value_a, leaves_a, a.upstream())
    grads_of(value_b, leaves_b, b.upstream())
    for name, grad in zip(leaves_a, grads_a, strict=True):
        expect(
            oracle.error(grad, kept[name]) < tolerance(loss, 1e-6),
            f"the gradient of {name} depends on another call made since its forward ({a})",
        )
        expect(
            torch.equal(alone[name], kept[name]), f"{name}'s gradient is overwritten later ({a})"
        )
    for case in (replace(a, n=3, v=5), replace(a, n=7, v=23), a):
        judge(loss, case, about="after calls with other shapes")


def check_deterministic(loss: impls.Loss) -> None:
    """The same call gives the same bits."""
    case = Case(n=64, v=1031).fit(loss)
    tensors = case.tensors(loss)
    first = gradients(loss, case, tensors, case.upstream())
    for _ in range(3):
        for name, grad in gradients(loss, case, tensors, case.upstream()).items():
            expect(torch.equal(grad, first[name]), f"the gradient of {name} varies ({case})")


def check_frozen(loss: impls.Loss) -> None:
    """Arguments that need no gradient may be any of them, or all; others' gradients stay right."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    names = [name for name in oracle.DIFFERENTIABLE if name in tensors]
    full = gradients(loss, case, tensors, case.upstream())
    for count in range(1, len(names)):
        for chosen in itertools.combinations(names, count):
            some = gradients(loss, case, tensors, case.upstream(), chosen)
            for name, grad in some.items():
                expect(
                    oracle.error(grad, full[name]) < tolerance(loss, 1e-6),
                    f"the gradient of {name} is wrong when {', '.join(chosen)} alone need one "
                    f"({case})",
                )
    value = call(
        lambda: loss.fn(**tensors, **case.options(loss)), f"{case}; nothing needs a gradient"
    )
    expect(not value.requires_grad, f"the value needs a gradient where no argument does ({case})")
    leaves = {name: tensors[name].clone().requires_grad_() for name in names}
    with torch.no_grad():
        again = call(
            lambda: loss.fn(**{**tensors, **leaves}, **case.options(loss)), f"{case}; no_grad"
        )
    expect(
        oracle.error(again, value) < tolerance(loss, 1e-6) and not again.requires_grad,
        f"the value differs under no_grad ({case})",
    )


def check_accumulates(loss: impls.Loss) -> None:
    """``backward()`` adds to ``.grad``, as for any other function."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    value, leaves = forward(loss, case, tensors)
    upstream = case.upstream().to(value)
    call(lambda: value.backward(upstream), str(case))
    once = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    again = loss.fn(**{**tensors, **leaves}, **case.options(loss))
    again.backward(upstream)
    for name, leaf in leaves.items():
        expect(
            oracle.error(leaf.grad, 2 * once[name]) < tolerance(loss, 1e-6),
            f"two backward passes do not double {name}.grad ({case})",
        )


def check_not_a_leaf(loss: impls.Loss) -> None:
    """Its arguments may be results of other functions, used again after it."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    leaf = tensors["input"].clone().requires_grad_()
    hidden = leaf * 2
    value = loss.fn(**{**tensors, "input": hidden}, **case.options(loss))
    call(lambda: (value + hidden.square().sum()).backward(), f"{case}; the input is used twice")
    right = oracle.expected(
        loss.level, {**tensors, "input": 2 * tensors["input"]}, torch.tensor(1.0)
    )["input"]
    expected = 2 * (right + 2 * 2 * tensors["input"].double())
    expect(
        oracle.error(leaf.grad, expected) < tolerance(loss, 1e-5),
        f"the gradient is wrong for an input that is computed, and used again ({case})",
    )


def check_double_backward(loss: impls.Loss) -> None:
    """A penalty on its gradient is differentiated right, or raises: never silently left out."""
    case = Case(n=3, v=5, d=4, dtype="float64")
    if case.dtype not in loss.support.dtypes:
        raise SkipTest(f"no {case.dtype}")
    # A graph that torch.compile made for other shapes may raise where one made for these does not.
    torch.compiler.reset()

    def penalised(fn: Callable[..., Tensor]) -> Tensor:
        leaf = case.tensors(loss)["input"].requires_grad_()
        value = fn(**{**case.tensors(loss), "input": leaf}, **case.options(loss))
        (grad,) = torch.autograd.grad(value, [leaf], create_graph=True)
        return torch.autograd.grad(value + grad.square().sum(), [leaf])[0]

    # Without a penalty it must not raise.
    gradients(loss, case, case.tensors(loss), case.upstream())
    try:
        found = penalised(loss.fn)
    except RuntimeError:
        return
    right = penalised(oracle.ORACLES[loss.level])
    expect(oracle.error(found, right) < 1e-9, f"the gradient with a penalty is wrong ({case})")
    leaves = {name: tensor for name, tensor in case.tensors(loss).items() if name != "target"}
    others = {"target": case.tensors(loss)["target"], **case.options(loss)}
    expect(
        torch.autograd.gradgradcheck(
            lambda *given: loss.fn(**dict(zip(leaves, given, strict=True)), **others),
            tuple(tensor.requires_grad_() for tensor in leaves.values()),
            raise_exception=False,
        ),
        f"gradgradcheck fails ({case})",
    )


def check_autocast(loss: impls.Loss) -> None:
    """Under autocast it is as precise as PyTorch's own loss, takes its dtypes and gives them."""
    if "bfloat16" not in loss.support.dtypes:
        raise SkipTest("no bfloat16")
    case = Case(n=6, v=37, label_smoothing=0.1, ignored=(2,)).fit(loss)
    options, upstream = case.options(loss), case.upstream()

    def evaluate(fn: Callable[..., Tensor], tensors: Tensors) -> Tensors:
        def cast(**arguments: Any) -> Tensor:
            with torch.autocast(loss.support.devices[0], torch.bfloat16):
                return fn(**arguments)

        return oracle.evaluate(cast, tensors, upstream, **options)

    for dtype in (torch.float32, torch.bfloat16):
        # Weights are float32, as in training, of a loss without float32 too: autocast casts them.
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in case.tensors(loss).items()
        }
        tensors["input"] = tensors["input"].to(dtype)
        where = f"{case}; autocast, input {dtype}"
        native = evaluate(NATIVE[loss.level], tensors)
        actual = call(lambda: evaluate(loss.fn, tensors), where)  # noqa: B023  called at once
        expected = oracle.expected(loss.level, tensors, upstream, **options)
        rounding = "float32" if loss.level == "logits" and dtype == torch.float32 else "bfloat16"
        for name, right in expected.items():
            expect(
                actual[name].dtype == native[name].dtype,
                f"{name} is {actual[name].dtype}, PyTorch's {native[name].dtype} ({where})",
            )
            found, theirs = oracle.error(actual[name], right), oracle.error(native[name], right)
            expect(
                found <= oracle.budget(theirs, rounding),
                f"{name} is off by {found:.2g}, PyTorch's own by {theirs:.2g} ({where})",
            )


def check_in_a_compiled_step(loss: impls.Loss) -> None:
    """A caller's ``torch.compile`` around it changes nothing."""
    case = Case(label_smoothing=0.1, ignored=(1,)).fit(loss)
    compiled = torch.compile(lambda **arguments: 2 * loss.fn(**arguments), backend="aot_eager")
    tensors, options, upstream = case.tensors(loss), case.options(loss), case.upstream()
    actual = call(
        lambda: oracle.evaluate(compiled, tensors, upstream, **options), f"{case}; compiled"
    )
    for name, right in oracle.expected(loss.level, tensors, upstream, **options).items():
        expect(
            oracle.error(actual[name], 2 * right) < tolerance(loss, 1e-5),
            f"{name} is wrong inside a function that is compiled ({case})",
        )


def check_random(loss: impls.Loss) -> None:
    """It is right for calls drawn at random; the one shown is the smallest hypothesis found."""
    rows = st.integers(1, 12)
    layouts = ["contiguous", "transposed", "sliced", "expanded"]
    if "strides" in loss.support.deviations:
        layouts = layouts[:1]

    @hypothesis.settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,  # the first says enough; several come without their messages
    )
    @hypothesis.given(
        case=st.builds(
            Case,
            n=rows,
            v=st.integers(2, 300),
            reduction=st.sampled_from(["mean", "sum", "none"]),
            label_smoothing=st.sampled_from([0.0, 0.1]),
            weighted=st.booleans(),
            ignore_index=st.sampled_from([-100, -1, 0, 3]),
            scale=st.sampled_from([1.0, 0.01, 20.0]),
            seed=st.integers(0, 1000),
        ),
        ignored=st.sets(st.integers(0, 11)),
        layout=st.sampled_from(layouts),
    )
    def drawn(case: Case, ignored: set[int], layout: str) -> None:
        case = case.fit(loss)
        case = replace(case, ignored=tuple(sorted(row for row in ignored if row < case.n)))
        tensors = case.tensors(loss)
        x = tensors["input"]
        tensors["input"] = {
            "contiguous": x,
            "transposed": x.T.contiguous().T,
            "sliced": x.repeat_interleave(3, 1)[:, 1::3],
            "expanded": x[:1].expand_as(x),
        }[layout]
        if (tensors["target"] == case.ignore_index).all():
            return  # the mean is nan, which another property is about
        judge(loss, case, tensors, f"input {layout}")

    drawn()


def check_positional(loss: impls.Loss) -> None:
    """It drops in for PyTorch's: the same names and defaults, tensors by position."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    order = {"logits": ("input", "target"), "linear": ("input", "linear_weight", "target")}
    value = call(lambda: loss.fn(*(tensors[name] for name in order[loss.level])), "defaults")
    options = {name: tensors[name] for name in order[loss.level]}
    right = oracle.ORACLES[loss.level](**options)
    expect(
        oracle.error(value, right) < tolerance(loss, 1e-5),
        "called with tensors alone, it is not the mean",
    )


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def hold(loss: impls.Loss, check: str) -> None:
    """Raise ``Wrong`` unless ``loss`` has the property ``check``, one of ``CHECKS``.

    ``unittest.SkipTest``, if the property is about what the loss does not offer.
    """
    if loss.support.overwrites_input and check != "arguments_untouched":
        loss = replace(loss, fn=given_a_copy(loss.fn))
    CHECKS[check](loss)


def given_a_copy(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn``, which overwrites its input, called with a copy of it."""

    @functools.wraps(fn)
    def spared(input: Tensor, *others: Any, **options: Any) -> Tensor:
        return fn(input.clone(), *others, **options)

    return spared


# ---- What the properties are made of.


def forward(
    loss: impls.Loss, case: Case, tensors: Mapping[str, Tensor], need: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensors]:
    """The value, and the leaves (copies of the arguments) whose gradients can be asked for."""
    leaves = {
        name: tensors[name].clone().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    arguments = {**tensors, **leaves}
    return call(lambda: loss.fn(**arguments, **case.options(loss)), str(case)), leaves


def grads_of(
    value: Tensor, leaves: Tensors, upstream: Tensor, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    upstream = upstream.to(value)
    return torch.autograd.grad(value, tuple(leaves.values()), upstream, retain_graph=retain_graph)


def gradients(
    loss: impls.Loss,
    case: Case,
    tensors: Mapping[str, Tensor],
    upstream: Tensor,
    need: tuple[str, ...] | None = None,
) -> Tensors:
    """The gradients, by name, of the arguments as they are: not copies."""
    leaves = {
        name: tensors[name].detach().requires_grad_()
        for name in need or oracle.DIFFERENTIABLE
        if name in tensors
    }
    value = call(lambda: loss.fn(**{**tensors, **leaves}, **case.options(loss)), str(case))
    grads = call(lambda: grads_of(value, leaves, upstream), str(case))
    return dict(zip(leaves, grads, strict=True))


def same_value(loss: impls.Loss, case: Case, tensors: Tensors, right: float | list[float]) -> None:
    value = call(lambda: loss.fn(**tensors, **case.options(loss)), str(case))
    expected = torch.tensor(right, dtype=getattr(torch, case.dtype))
    expect(
        torch.equal(value.cpu().nan_to_num(nan=-1), expected.nan_to_num(nan=-1)),
        f"the value is {value.tolist()}, not {right} ({case})",
    )


def raises(
    kind: type[Exception], loss: impls.Loss, case: Case, tensors: Tensors, *words: str
) -> None:
    """Raise ``Wrong`` unless the call raises ``kind`` with all ``words`` in its message."""
    try:
        value = loss.fn(**tensors, **case.options(loss))
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        expect(not missing, f"the message {str(error)!r} does not name {' and '.join(missing)}")
    except Exception as error:
        raise Wrong(f"it raises {type(error).__name__}, not {kind.__name__}: {error}") from error
    else:
        named = " and ".join(words)
        raise Wrong(f"it returns {value.tolist()}, where {kind.__name__} is due, naming {named}")
