"""Properties: a call depends on its arguments alone, and changes nothing else."""

from dataclasses import replace

import torch

import impls
from benchmarks.measure import oracle
from tests.gate.budget import judge
from tests.gate.case import Case, call, expect, forward, gradients, grads_of, tolerance


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
    if case.reduction != "none":
        return
    upstream = tensors["input"].new_tensor(0.5).expand(6)
    right = oracle.expected(loss.level, tensors, upstream, **case.options(loss))
    for name, grad in gradients(loss, case, tensors, upstream).items():
        expect(
            oracle.error(grad, right[name]) < tolerance(loss, 1e-5),
            f"the gradient of {name} is wrong for an expanded upstream gradient ({case})",
        )


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
