"""Properties of the gate: what training scripts do around a loss leaves its gradients right."""

from collections.abc import Callable
from unittest import SkipTest

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import impls
from benchmarks.measure import oracle
from impls.loss import INTERPRETED
from tests.gate.case import (
    Case,
    call,
    call_loss,
    expect_close,
    forward,
    tolerance,
)


def check_in_a_model(loss: impls.Loss) -> None:
    """Gradients of earlier tokens, a hook, and checkpointing change nothing in a training step."""
    case = Case(ignored=(1,)).fit(loss)
    tensors = case.tensors(loss)
    names = [name for name in oracle.DIFFERENTIABLE if name in tensors]
    exact = oracle.expected(loss.level, tensors, torch.tensor(1.0), **case.options(loss))

    def step(*given: Tensor) -> Tensor:
        return loss.fn(**tensors | dict(zip(names, given, strict=True)), **case.options(loss))

    for about, run in {
        "a step": step,
        "a checkpointed step": lambda *given: checkpoint(step, *given, use_reentrant=False),
    }.items():
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        for leaf in leaves.values():
            leaf.grad = torch.ones_like(leaf)
        hidden, *others = leaves.values()
        hidden = hidden.clone()
        hidden.register_hook(lambda grad: 3 * grad)
        call(lambda: run(hidden, *others).backward(), f"{case}; {about}")  # noqa: B023  at once
        for name, leaf in leaves.items():
            wanted = exact[name] * (3 if name == "input" else 1)
            what = f"{name}.grad after {about} with a hook on the input"
            expect_close(leaf.grad - 1, wanted, 10 * tolerance(loss, 1e-6), what, str(case))


def check_accumulates(loss: impls.Loss) -> None:
    """``backward()`` adds to ``.grad``."""
    case = Case().fit(loss)
    tensors = case.tensors(loss)
    value, leaves = forward(loss, case, tensors)
    upstream = case.upstream().to(value)
    call(lambda: value.backward(upstream), str(case))
    once = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    again = call_loss(loss, case, {**tensors, **leaves})
    call(lambda: again.backward(upstream), str(case))
    for name, leaf in leaves.items():
        what = f"{name}.grad after two backward passes"
        expect_close(leaf.grad, 2 * once[name], tolerance(loss, 1e-6), what, str(case))


def check_micro_batches(loss: impls.Loss) -> None:
    """The sum over micro-batches, divided by all tokens that count, is the mean of the batch."""
    if "reduction" not in loss.options:
        raise SkipTest("no reduction of sum")
    unit = 5 if INTERPRETED else 50  # the interpreter takes seconds for 600 rows
    parts = slice(0, 3 * unit), slice(3 * unit, 4 * unit), slice(4 * unit, 12 * unit)
    about = f"micro-batches of {3 * unit}, {unit} and {8 * unit} rows"
    case = Case(n=12 * unit, reduction="sum").fit(loss)
    tensors, counted = case.tensors(loss), case.n
    if "ignore_index" in loss.options:
        tensors["target"][parts[1]] = case.ignore_index
        counted, about = 11 * unit, f"{about}, the second ignored whole"
    leaves = {
        name: tensors[name].clone().requires_grad_()
        for name in oracle.DIFFERENTIABLE
        if name in tensors
    }
    total = torch.zeros((), dtype=torch.float64)
    for rows in parts:
        part = {"input": leaves["input"][rows], "target": tensors["target"][rows]}
        value = call_loss(loss, case, {**tensors, **leaves, **part}, about)
        call((value / counted).backward, f"{case}; {about}")
        total += value.detach().double().cpu() / counted
    options = {**case.options(loss), "reduction": "mean"}
    exact = oracle.expected(loss.level, tensors, torch.tensor(1.0), **options)
    actual = {"value": total, **{name: leaf.grad for name, leaf in leaves.items()}}
    for name, tensor in actual.items():
        what = "the value" if name == "value" else f"{name}.grad"
        what += f", over all tokens that count, of {about},"
        expect_close(tensor, exact[name], tolerance(loss, 1e-5), what, str(case))


def check_tied_weights(loss: impls.Loss) -> None:
    """linear_weight may also be the embedding that makes the input. Its gradient has two parts."""
    if loss.level != "linear":
        raise SkipTest("no linear_weight")
    case = Case(ignored=(1,)).fit(loss)
    tensors, options = case.tensors(loss), case.options(loss)
    tokens = torch.arange(case.n, device=tensors["target"].device)

    def step(fn: Callable[..., Tensor], weight: Tensor) -> Tensor:
        hidden = torch.tanh(F.embedding(tokens, weight))
        return fn(**{**tensors, "input": hidden, "linear_weight": weight}, **options)

    leaf = tensors["linear_weight"].double().requires_grad_()
    (exact,) = torch.autograd.grad(step(oracle.ORACLES[loss.level], leaf), [leaf])
    leaf = tensors["linear_weight"].clone().requires_grad_()
    for steps in (1, 2):
        call(lambda: step(loss.fn, leaf).backward(), f"{case}; tied weights")
        what = f"linear_weight.grad after step {steps} with tied weights"
        expect_close(leaf.grad, steps * exact, 10 * tolerance(loss, 1e-6), what, str(case))
