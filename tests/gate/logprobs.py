"""Properties of the gate: log-probabilities and entropies, for reinforcement learning.

These are tried at level logprobs alone. The properties of a cross entropy are tried too, of the
linear loss that ``impls.loss.Loss.as_linear`` makes of log-probabilities.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
import torch.nn.functional as F
from torch import Tensor

import impls
from benchmarks.measure import oracle
from tests.gate.case import Case, Tensors, Wrong, call, describe, expect, expect_close, tolerance

NAMES = ("log p", "the entropy")
ALLOWED = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


class Rows(Case):
    """A case of log-probabilities, which have no reduction."""

    def __str__(self) -> str:
        return f"N={self.n}, V={self.v}, {self.dtype}"


def check_results(loss: impls.Loss) -> None:
    """entropy=False gives a tensor (N,), entropy=True a pair, in float32 for half precision."""
    for case, tensors in in_each_dtype(loss):
        alone = call(lambda: loss.fn(**tensors), str(case))  # noqa: B023  called at once
        expect(isinstance(alone, Tensor), f"the result is a {type(alone).__name__} ({case})")
        results = results_of(loss, tensors, str(case))
        wide = torch.promote_types(getattr(torch, case.dtype), torch.float32)
        for result in (alone, *results):
            shape = tuple(result.shape)
            expect(shape == (case.n,), f"a result has shape {shape}, not ({case.n},) ({case})")
            expect(result.dtype == wide, f"a result is {result.dtype}, not {wide} ({case})")
        what = "log p, compared with log p without entropies,"
        expect_close(results[0], alone, ALLOWED[case.dtype], what, str(case))


def check_never_positive(loss: impls.Loss) -> None:
    """No log-probability is positive, not where the target's probability is nearly 1 either."""
    for case, tensors in in_each_dtype(loss):
        for scale in (1.0, 10.0, 100.0):  # from flat to certain
            weight = scale * tensors["linear_weight"]
            target = F.linear(tensors["input"].double(), weight.double()).argmax(1)
            where = f"{case}; logits × {scale:g}, the largest is the target's"
            log_p = results_of(loss, {**tensors, "linear_weight": weight, "target": target}, where)
            largest = float(log_p[0].max())
            expect(largest <= 0, f"log p is {largest:.3g} ({where})")


def check_temperature(loss: impls.Loss) -> None:
    """The temperature divides the logits, in the value and in each gradient."""
    need_option(loss, "temperature")
    for temperature in (0.7, 1.5):
        judge(loss, Rows(n=6, v=37).fit(loss), temperature=temperature)


def check_bad_temperature(loss: impls.Loss) -> None:
    """A temperature that is not a positive number raises ValueError."""
    need_option(loss, "temperature")
    case = Rows().fit(loss)
    for temperature in (0.0, -1.0, math.nan):
        where = f"a temperature of {temperature}"
        try:
            loss.fn(**case.tensors(loss), temperature=temperature)
        except ValueError as error:
            named = "temperature" in str(error)
            expect(named, f"the error does not name the temperature: {describe(error)}")
        except Exception as error:
            raise Wrong(f"{where} raises {describe(error)}, not ValueError") from error
        else:
            raise Wrong(f"{where} is accepted ({case})")


def check_entropy(loss: impls.Loss) -> None:
    """In each dtype an entropy is in [0, log V] and right, and so is its gradient."""
    need_option(loss, "entropy")
    for case, tensors in in_each_dtype(loss):
        judge(loss, replace(case, n=6), entropy=True)
        tensors.pop("linear_bias", None)
        for scale in (0.0, 1.0, 100.0):  # from flat to certain
            given = {**tensors, "linear_weight": scale * tensors["linear_weight"]}
            where = f"{case}; logits × {scale:g}"
            entropy = results_of(loss, given, where)[1]
            least, largest, most = float(entropy.min()), float(entropy.max()), math.log(case.v)
            expect(least >= 0, f"an entropy is {least:.3g} ({where})")
            within = largest <= most * (1 + 1e-6)  # rounding of the sum
            expect(within, f"an entropy is {largest:.7g}, and log V is {most:.7g} ({where})")
            # Not relative to a small entropy: its rounding error is that of a number near 1.
            native, exact = (
                fn(**given, entropy=True)[1].double()
                for fn in (impls.load("logprobs.builtin").fn, oracle.token_logprobs)
            )
            error, of_native = (
                float((one - exact).abs().max()) for one in (entropy.double(), native)
            )
            allowed = max(ALLOWED[case.dtype] * most, 4 * of_native)
            expect(
                error <= allowed,
                f"the entropy is wrong: error {error:.2g}, allowed {allowed:.2g} ({where})",
            )


def check_impossible_class(loss: impls.Loss) -> None:
    """A logit of -inf adds nothing to an entropy or a gradient, though 0 · -inf is nan."""
    need_option(loss, "entropy")
    need_option(loss, "linear_bias")
    case = Rows(n=6, v=37).fit(loss)
    tensors = case.tensors(loss)
    tensors["linear_bias"][:5] = float("-inf")
    tensors["target"] = tensors["target"] % 32 + 5
    judge(loss, case, tensors, "a bias of -inf", entropy=True)


def check_entropy_gradient(loss: impls.Loss) -> None:
    """Both results have gradients, each for its own upstream gradient. One may not be used."""
    need_option(loss, "entropy")
    case = Rows(n=6, v=37).fit(loss)
    for temperature in (1.0, 0.7) if "temperature" in loss.options else (1.0,):
        options = {} if temperature == 1 else {"temperature": temperature}
        for about, factors in {
            "log p is used": (1.0, 0.0),
            "the entropy is used": (0.0, 1.0),
            "both are used": (1.0, -0.7),
        }.items():
            judge(loss, case, None, about, factors, entropy=True, **options)


def check_shift_invariant(loss: impls.Loss) -> None:
    """A constant that is added to all logits changes nothing."""
    case = Rows(n=6, v=37).fit(loss)
    tensors = case.tensors(loss)
    before = results_of(loss, tensors, str(case))
    x, weight = tensors["input"], tensors["linear_weight"]
    for shift in (100.0, -100.0):  # exp(100) is inf in float32, exp(-100) is 0
        constant = {
            "input": F.pad(x, (0, 1), value=1.0),
            "linear_weight": F.pad(weight, (0, 1), value=shift),
        }
        where = f"{case}; logits {shift:+g}"
        after = results_of(loss, tensors | constant, where)
        for name, actual, expected in zip(NAMES, after, before, strict=False):
            expect_close(actual, expected, 10 * tolerance(loss, 1e-5), name, where)


def check_batch_invariant(loss: impls.Loss) -> None:
    """A row has the same results alone and beside other rows, also beside rows of huge logits.

    A trainer takes exp(new - old) of results from different batches.
    """
    case = Rows(n=600, v=37).fit(loss)
    tensors = case.tensors(loss)
    rows = [0, 299, 599]
    part = {name: tensors[name][rows] for name in ("input", "target")}
    alone = results_of(loss, tensors | part, str(replace(case, n=3)))
    huge = 1000 * tensors["input"]
    huge[rows] = tensors["input"][rows]
    for about, x in {"597": tensors["input"], "597 huge": huge}.items():
        where = f"{case}; rows 0, 299 and 599 beside {about} rows"
        results = results_of(loss, {**tensors, "input": x}, where)
        for name, result, expected in zip(NAMES, results, alone, strict=False):
            expect_close(result[rows], expected, tolerance(loss, 1e-5), name, where)


def check_no_rows(loss: impls.Loss) -> None:
    """An empty batch has empty results, and gradients of 0."""
    case = Rows(n=0).fit(loss)
    tensors = case.tensors(loss)
    leaves = leaves_of(tensors)
    results = results_of(loss, tensors | leaves, str(case))
    shapes = [tuple(result.shape) for result in results]
    expect(set(shapes) == {(0,)}, f"the results have the shapes {shapes} ({case})")
    grads = call(lambda: torch.autograd.grad(sum(results).sum(), tuple(leaves.values())), str(case))
    for name, grad in zip(leaves, grads, strict=True):
        is_zero = grad.shape == tensors[name].shape and not grad.any()
        expect(is_zero, f"the gradient of {name} is not zero in the shape of {name} ({case})")


def need_option(loss: impls.Loss, option: str) -> None:
    if option not in loss.options:
        raise SkipTest(f"no {option}")


def in_each_dtype(loss: impls.Loss) -> Iterator[tuple[Case, Tensors]]:
    for dtype in loss.support.dtypes:
        case = Rows(n=600, v=37, dtype=dtype)  # rounding may spare a few rows
        yield case, case.tensors(loss)


def leaves_of(tensors: Tensors) -> Tensors:
    """Copies of the differentiable tensors, as leaves of the graph."""
    names = [name for name in oracle.DIFFERENTIABLE if name in tensors]
    return {name: tensors[name].clone().requires_grad_() for name in names}


def results_of(loss: impls.Loss, tensors: Tensors, where: str) -> list[Tensor]:
    """log p and, if the loss has them, the entropies."""
    if "entropy" not in loss.options:
        return [call(lambda: loss.fn(**tensors), where)]
    results = call(lambda: loss.fn(**tensors, entropy=True), f"{where}; entropy=True")
    is_pair = isinstance(results, tuple) and len(results) == 2
    expect(is_pair, f"with entropy=True the result is a {type(results).__name__} ({where})")
    return list(results)


def judge(
    loss: impls.Loss,
    case: Case,
    tensors: Tensors | None = None,
    about: str = "",
    factors: tuple[float, ...] = (1.0, 1.0),
    **options: Any,
) -> None:
    """Raise ``Wrong`` unless results and gradients are close to those of the oracle.

    The upstream gradients are random. The ``factors`` multiply those of log p and of the entropies.
    With a factor of 0 the result is not used.
    """
    tensors = tensors or case.tensors(loss)
    generator = torch.Generator().manual_seed(case.seed + 1)
    upstreams = [factor * torch.randn(case.n, generator=generator) for factor in factors]
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    where = "; ".join(filter(None, [str(case), given, about]))

    def evaluate(fn: Callable[..., Any]) -> Tensors:
        leaves = leaves_of(tensors)
        results = fn(**{**tensors, **leaves}, **options)
        results = results if isinstance(results, tuple) else (results,)
        used = [one for one in zip(results, upstreams, strict=False) if one[1].any()]
        grads = torch.autograd.grad(
            [result for result, _ in used],
            tuple(leaves.values()),
            [upstream.to(result) for result, upstream in used],
        )
        gradients = {f"the gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}
        return {name: one.detach() for name, one in zip(NAMES, results, strict=False)} | gradients

    native = evaluate(impls.load("logprobs.builtin").fn)
    expected = evaluate(oracle.token_logprobs)
    actual = call(lambda: evaluate(loss.fn), where)
    for name, exact in expected.items():
        allowed = max(ALLOWED[case.dtype], 4 * oracle.error(native[name], exact))
        expect_close(actual[name], exact, allowed, name, where)
