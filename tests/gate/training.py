"""Properties of the gate: what training scripts do around a loss leaves its gradients right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import impls
from benchmarks.measure import oracle
from impls.loss import INTERPRETED
from tests.gate.case import (
    Case,
    Tensors,
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
    device = tensors["target"].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for rows in parts:
        part = {"input": leaves["input"][rows], "target": tensors["target"][rows]}
        value = call_loss(loss, case, {**tensors, **leaves, **part}, about)
        call((value / counted).backward, f"{case}; {about}")
        total += value.detach().double() / counted
    options = {**case.options(loss), "reduction": "mean"}
    exact = oracle.expected(loss.level, tensors, torch.ones((), device=device), **options)
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


def check_in_ddp(loss: impls.Loss) -> None:
    """In DistributedDataParallel three micro-batches, one ignored whole, have their gradients."""
    if loss.level != "linear":
        raise SkipTest("no linear_weight")
    if not dist.is_available() or not dist.is_gloo_available() or dist.is_initialized():
        raise SkipTest("no torch.distributed with gloo, or a process group is there already")
    reduction = "sum" if "reduction" in loss.options else "mean"
    case = Case(reduction=reduction).fit(loss)
    batches = [replace(case, seed=seed).tensors(loss) for seed in (0, 1, 2)]
    if reduction == "sum" and "ignore_index" in loss.options:
        batches[1]["target"].fill_(case.ignore_index)
    names = [name for name in oracle.DIFFERENTIABLE[1:] if name in batches[0]]
    parameters = {name: batches[0][name] for name in names}
    batches = [{**batch, **parameters} for batch in batches]
    head = Head(loss.fn, parameters, case.options(loss))

    def train() -> None:
        module = DistributedDataParallel(head)
        for number, batch in enumerate(batches):
            with module.no_sync() if number == 0 else nullcontext():
                module(batch["input"], batch["target"]).backward()

    with one_rank():
        call(train, f"{case}; in DistributedDataParallel")
    options = case.options(loss)
    exact = [oracle.expected(loss.level, batch, torch.tensor(1.0), **options) for batch in batches]
    for name in names:
        what = f"{name}.grad of three micro-batches in DistributedDataParallel"
        expected = torch.stack([each[name] for each in exact]).sum(0)
        grad = head.weights[name].grad
        expect_close(grad, expected, tolerance(loss, 1e-5), what, str(case))


class Head(nn.Module):
    """A module with a parameter that makes hidden states, and a loss's weight and bias."""

    def __init__(self, fn: Callable[..., Tensor], parameters: Tensors, options: dict[str, Any]):
        super().__init__()
        self.fn, self.options = fn, options
        self.scale = nn.Parameter(torch.ones_like(parameters["linear_weight"][0]))  # (D,)
        self.weights = nn.ParameterDict({name: one.clone() for name, one in parameters.items()})

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.fn(input=self.scale * input, target=target, **self.weights, **self.options)


@contextmanager
def one_rank() -> Iterator[None]:
    """Make this process the only rank of a group. No file and no other process takes part."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
