"""``python -m benchmarks edge-cases``: runs each loss in each edge case and says what it does.

A probe calls the loss where users expect different things, and says in a few words what came back.
The docstring of a probe is its column in the table. Of log-probabilities, each probe calls the mean
of -log p.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import impls
from benchmarks import options
from benchmarks.measure import oracle
from benchmarks.options import USER_ERRORS, chosen_losses, open_for_append
from benchmarks.ranks.pool import Ranks, needs_ranks

N, V, D = 4, 9, 6


def arguments(
    loss: impls.Loss, dtype: torch.dtype = torch.float32, n: int = N
) -> dict[str, Tensor]:
    """Small tensors for ``loss``, the same numbers for each probe."""
    generator = torch.Generator().manual_seed(0)
    width = V if loss.level == "logits" else D
    tensors = {"input": torch.randn(n, width, generator=generator, dtype=torch.float32).to(dtype)}
    if loss.level == "linear":
        tensors["linear_weight"] = torch.randn(V, D, generator=generator).to(dtype)
    tensors["target"] = torch.randint(V, (n,), generator=generator)
    return tensors


def all_ignored(loss: impls.Loss) -> str:
    """mean over rows that are all ignored"""
    tensors = arguments(loss)
    return f"{float(loss.fn(**{**tensors, 'target': torch.full((N,), -100)})):g}"


def empty(loss: impls.Loss) -> str:
    """mean over no rows"""
    return f"{float(loss.fn(**arguments(loss, n=0))):g}"


def out_of_range(loss: impls.Loss) -> str:
    """a target of V, on the CPU"""
    tensors = arguments(loss)
    tensors["target"][1] = V
    return f"returns {float(loss.fn(**tensors)):.3g}"


def negative_target(loss: impls.Loss) -> str:
    """a target of -1, not ignored, on the CPU"""
    tensors = arguments(loss)
    tensors["target"][1] = -1
    return f"returns {float(loss.fn(**tensors)):.3g}"


def minus_infinity(loss: impls.Loss) -> str:
    """a logit of -inf, not the target's: value and gradient"""
    tensors = arguments(loss)
    if loss.level == "linear":
        return "-"
    tensors["target"].fill_(1)
    tensors["input"][:, 0] = -math.inf
    return verdict(loss, tensors)


def second_backward(loss: impls.Loss) -> str:
    """backward again, with retain_graph"""
    tensors = arguments(loss)
    leaf = tensors["input"].requires_grad_()
    value = loss.fn(**tensors)
    upstream = torch.tensor(0.5)
    first = torch.autograd.grad(value, leaf, upstream, retain_graph=True)[0].clone()
    second = torch.autograd.grad(value, leaf, upstream)[0]
    return "the same" if torch.equal(first, second) else "another gradient"


def overwrites_input(loss: impls.Loss) -> str:
    """the input after forward and backward"""
    tensors = arguments(loss)
    before = tensors["input"].clone()
    leaf = tensors["input"].requires_grad_()
    loss.fn(**tensors).backward()
    return "untouched" if torch.equal(leaf.detach(), before) else "overwritten"


def label_smoothing(loss: impls.Loss) -> str:
    """label_smoothing=0.1"""
    if "label_smoothing" not in loss.options:
        return "not an option"
    value = loss.fn(**arguments(loss), label_smoothing=0.1)
    tensors = arguments(loss)  # again, because the loss may have overwritten them
    formulas = {"ε/V to every class": 0.1, "ε/(V-1) to the others": 0.1 * V / (V - 1)}
    for name, smoothing in formulas.items():
        expected = oracle.ORACLES[loss.level](**tensors, label_smoothing=smoothing)
        if oracle.error(value, expected) < 1e-5:
            return name
    return "another formula"


def gradient_penalty(loss: impls.Loss) -> str:
    """a penalty on its gradient"""

    def penalised(fn: Callable[..., Tensor]) -> Tensor:
        tensors = arguments(loss)
        leaf = tensors["input"].requires_grad_()
        value = fn(**tensors)
        (grad,) = torch.autograd.grad(value, [leaf], create_graph=True)
        return torch.autograd.grad(value + grad.square().sum(), [leaf])[0]

    actual, expected = penalised(loss.fn), penalised(oracle.ORACLES[loss.level])
    return "differentiated" if oracle.error(actual, expected) < 1e-5 else "silently left out"


def bfloat16_value(loss: impls.Loss) -> str:
    """dtype of the value for bfloat16"""
    return str(loss.fn(**arguments(loss, torch.bfloat16)).dtype).removeprefix("torch.")


def verdict(loss: impls.Loss, tensors: dict[str, Tensor], **options: Any) -> str:
    upstream = torch.tensor(0.5)
    expected = oracle.expected(loss.level, tensors, upstream, **options)
    actual = oracle.evaluate(loss.fn, tensors, upstream, **options)
    wrong = [name for name in expected if not oracle.error(actual[name], expected[name]) < 1e-5]
    return f"wrong: {', '.join(wrong)}" if wrong else "right"


PROBES = (
    all_ignored,
    empty,
    out_of_range,
    negative_target,
    minus_infinity,
    second_backward,
    overwrites_input,
    label_smoothing,
    gradient_penalty,
    bfloat16_value,
)


def reduced(loss: impls.Loss) -> impls.Loss:
    """``loss``. If it gives log-probabilities, the mean of -log p as a linear loss.

    ``Loss.as_linear`` would round the mean to the dtype of the input.
    """
    if loss.level != "logprobs":
        return loss

    def mean(**given: Any) -> Tensor:
        result = loss.fn(**given)
        log_p = result[0] if isinstance(result, tuple) else result
        return (0 - log_p).mean()  # not -0 where log p is 0

    return replace(loss, level="linear", fn=mean)


def matrix(losses: list[impls.Loss]) -> list[dict[str, str]]:
    """A row for each loss: its name, and what each probe says."""
    return [
        {"impl": loss.name} | {describe(p): run(p, loss) for p in PROBES}
        for loss in map(reduced, losses)
    ]


def describe(probe: Callable[[impls.Loss], str]) -> str:
    return (probe.__doc__ or "").strip()


def run(probe: Callable[[impls.Loss], str], loss: impls.Loss) -> str:
    try:
        return probe(loss)
    except Exception as error:  # a user would meet it too
        return f"raises {type(error).__name__}"


DESCRIPTION = """\
Run each loss in each edge case, such as rows that are all ignored or a target out of
range, and say in a table what it does."""
EXAMPLES = """\
examples:
  python -m benchmarks edge-cases
  python -m benchmarks edge-cases --impl logits.builtin --impl my_loss.py"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks edge-cases",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    options.add(parser, "--impl")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/edge_cases.csv"),
        metavar="FILE",
        help="the CSV to write",
    )
    arguments = parser.parse_args(argv)
    try:
        losses = chosen_losses(arguments.impl, "float32", "cpu")
        open_for_append(arguments.out)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    import pandas as pd

    from reports.commands import load_name
    from reports.render.tables import edge_case_table

    with Ranks(2) as ranks:
        here = [
            ranks.loss(load_name(loss.name), 2) if needs_ranks(loss.name) else loss
            for loss in losses
        ]
        table = pd.DataFrame(matrix(here))
    table.to_csv(arguments.out, index=False)
    print(f"{edge_case_table(table)}\n\nwritten to {arguments.out}")
    return 0
