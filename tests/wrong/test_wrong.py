"""The gate rejects each wrong loss by the property that it lacks, and accepts correct losses."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

import impls
from benchmarks import ROOT
from benchmarks.ranks.pool import Ranks
from impls.shared.reduction import first_order
from tests.gate.case import Wrong
from tests.gate.runner import CHECKS, check_property
from tests.wrong import linear, logits, sharded

FILES = ROOT / "tests" / "files"
LEVELS = {"logits": logits, "linear": linear, "sharded": sharded}
WRONG = [(level, bug, check) for level in LEVELS for bug, (check, _) in LEVELS[level].BUGS.items()]
# Bugs that show by an error, with a part of its message. The gate names a fault for all others.
RAISES = {
    "empty_raises": "",
    "needs_grad": "",
    "autocast": "input is torch.bfloat16, weight torch.float32",
    "input_not_reduced": "the gradient of input differs between the ranks",
    "local_norm": "the value differs between the ranks",
    "ranks_differ": "the value differs between the ranks",
    "overwrites_slice": "linear_weight is overwritten on rank",
}
MAKE = {"logits": logits.cross_entropy, "linear": linear.linear_cross_entropy}


def load_wrong(level: str, bug: str | None, ranks: Ranks) -> impls.Loss:
    if level == "sharded":
        return ranks.loss(f"{sharded.__file__}({bug=})", 3)
    return impls.Loss(f"{level}.{bug}", level, MAKE[level](bug), impls.Support(), "")


@pytest.mark.parametrize(("level", "bug", "check"), WRONG)
def test_wrong_loss_is_rejected(level: str, bug: str, check: str, ranks: Ranks) -> None:
    with pytest.raises(Wrong) as rejected:
        check_property(load_wrong(level, bug, ranks), check)
    # An error in the file itself would be rejected too, with or without the bug.
    assert ("the loss raises" in str(rejected.value)) == (bug in RAISES), str(rejected.value)
    assert RAISES.get(bug, "") in str(rejected.value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("level", LEVELS)
def test_without_its_bug_it_passes(level: str, check: str, ranks: Ranks) -> None:
    """So the gate rejects the bug, and nothing else in the file."""
    check_property(load_wrong(level, None, ranks), check)


def log_softmax_and_nll(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    if not len(target):
        return F.cross_entropy(input, target, weight, reduction=reduction)
    return F.nll_loss(input.log_softmax(1), target, weight, None, ignore_index, None, reduction)


def gradient_made_in_forward(input, target, *, reduction="mean"):
    """As in fused losses, forward makes the gradient for an upstream of 1. Backward scales it."""
    return MadeInForward.apply(input, target, reduction)


class MadeInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, reduction):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            losses = F.cross_entropy(leaf, target, reduction="none")
            (grad,) = torch.autograd.grad(losses.sum(), [leaf])
        ctx.n = len(target) if reduction == "mean" else 1
        ctx.save_for_backward(grad)
        if reduction == "none":
            return losses.detach()
        return losses.detach().mean() if reduction == "mean" else losses.detach().sum()

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad * upstream.view(-1, 1) / ctx.n, None, None


def checkpointed(input, linear_weight, target, *, linear_bias=None, reduction="mean"):
    """Forward does not keep the logits. Backward computes them again."""
    return torch.utils.checkpoint.checkpoint(
        lambda *a: F.cross_entropy(F.linear(*a), target, reduction=reduction),
        *(input, linear_weight, linear_bias),
        use_reentrant=False,
    )


def mean_of_hidden_states(input, linear_weight, target):
    return F.cross_entropy(F.linear(input, linear_weight), target)


def mean_that_ignores(input, target, ignore_index=-100):
    return F.cross_entropy(input, target, ignore_index=ignore_index)


def in_place(input, target, *, reduction="mean"):
    """The loss overwrites the logits and declares it."""
    value = gradient_made_in_forward(input, target, reduction=reduction)
    input.data.zero_()
    return value


CORRECT_LOSSES = {
    "log_softmax_and_nll": ("logits", log_softmax_and_nll),
    "gradient_made_in_forward": ("logits", gradient_made_in_forward),
    "in_place": ("logits", in_place),
    "mean_of_hidden_states": ("linear", mean_of_hidden_states),
    "mean_that_ignores": ("logits", mean_that_ignores),
    "checkpointed": ("linear", checkpointed),
    "torch's own": ("linear", getattr(F, "linear_cross_entropy", None)),
}


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "value_error"])
@pytest.mark.parametrize("name", CORRECT_LOSSES)
def test_correct_losses_pass(name: str, check: str) -> None:
    level, fn = CORRECT_LOSSES[name]
    if fn is None:
        pytest.skip(f"torch {torch.__version__} has no F.linear_cross_entropy")
    support = impls.Support(overwrites_input=name == "in_place")
    check_property(impls.Loss(name, level, fn, support, ""), check)


@pytest.mark.parametrize("check", CHECKS)
def test_a_loss_of_logits_passes_as_a_loss_of_hidden_states(check: str) -> None:
    eager = impls.load("logits.eager").as_linear()
    assert eager.options == ("linear_bias", *impls.load("logits.eager").options)
    check_property(eager, check)


@pytest.mark.parametrize("check", CHECKS)
def test_a_loss_without_options_passes(check: str) -> None:
    check_property(impls.load(str(FILES / "mean_only.py")), check)


@pytest.mark.parametrize("check", ["options", "sizes", "strides", "upstream", "random"])
def test_a_wrong_loss_without_options_is_rejected(check: str) -> None:
    with pytest.raises(Wrong, match="the gradient of input"):
        check_property(impls.load(str(FILES / "zeros.py")), check)


def test_one_message_of_several_random_failures() -> None:
    """Some calls of this loss raise, others return a wrong value."""

    def forgets_ignore_index(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
        return F.nll_loss(input.log_softmax(1), target, weight, reduction=reduction)

    with pytest.raises(Wrong, match=r"the loss raises IndexError|the value is wrong"):
        check_property(
            impls.Loss("forgets", "logits", forgets_ignore_index, impls.Support(), ""), "random"
        )


@pytest.mark.parametrize("check", CHECKS)
def test_the_example_in_the_docs_passes(check: str, tmp_path) -> None:
    text = (ROOT / "docs" / "write-a-loss.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "autograd.py"
    file.write_text(example)
    check_property(impls.load(str(file)), check)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["logits.eager", "linear.builtin"])
def test_a_loss_of_half_precision_alone_passes(name: str, check: str) -> None:
    """Some CUDA kernels lack float32. The gate never calls such a loss in float32."""
    whole = impls.load(name)

    @functools.wraps(whole.fn)
    def half(input, *others, **options):
        value = whole.fn(input, *others, **options)
        assert torch.is_autocast_enabled("cpu") or input.dtype in (torch.bfloat16, torch.float16)
        return value

    support = impls.Support(dtypes=("bfloat16", "float16"))
    check_property(impls.Loss(name, whole.level, half, support, ""), check)
