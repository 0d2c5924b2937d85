"""The gate rejects each wrong loss by the property that it lacks, and accepts correct losses."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

import impls
from benchmarks import ROOT
from benchmarks.ranks.pool import Ranks
from tests.gate.case import Wrong
from tests.gate.runner import CHECKS, check_property, is_style
from tests.wrong import linear, logits, logprobs, reported, sharded
from tests.wrong.correct import CORRECT_LOSSES
from tests.wrong.reports import REPORTS

FILES = ROOT / "tests" / "files"
LEVELS = {
    "logits": logits,
    "linear": linear,
    "sharded": sharded,
    "logprobs": logprobs,
    "reported": reported,
}
WRONG = [(level, bug, check) for level in LEVELS for bug, (check, _) in LEVELS[level].BUGS.items()]
# Bugs that show by an error, with a part of its message. The gate names a fault for all others.
RAISES = {
    "empty_raises": "",
    "needs_grad": "",
    "needs_graph": "",
    "autocast": "input is torch.bfloat16, weight torch.float32",
    "input_not_reduced": "the gradient of input differs between the ranks",
    "local_norm": "the value differs between the ranks",
    "ranks_differ": "the value differs between the ranks",
    "no_rows_raise": "",
    "unused_weight": "Expected to have finished reduction",
    "overwrites_slice": "linear_weight is overwritten on rank",
}
MAKE = {
    "logits": ("logits", logits.cross_entropy),
    "reported": ("logits", reported.cross_entropy),
    "linear": ("linear", linear.linear_cross_entropy),
    "logprobs": ("logprobs", logprobs.token_logprobs),
}


def test_a_compiled_loss_is_still_compiled_after_func_transforms() -> None:
    calls = []

    def backend(module, inputs):
        return lambda *given: calls.append(module) or module(*given)

    compiled = torch.compile(F.cross_entropy, backend=backend)
    loss = impls.Loss("logits.counted", "logits", compiled, impls.Support(), "")
    check_property(loss, "func_transforms")
    calls.clear()
    compiled(torch.randn(2, 3), torch.tensor([0, 1]))
    assert calls


def load_wrong(level: str, bug: str | None, ranks: Ranks) -> impls.Loss:
    if level == "sharded":
        return ranks.loss(f"{sharded.__file__}({bug=})", 3)
    of, make = MAKE[level]
    return impls.Loss(f"{level}.{bug}", of, make(bug), impls.Support(), "")


@pytest.mark.parametrize(("level", "bug", "check"), WRONG)
def test_wrong_loss_is_rejected(level: str, bug: str, check: str, ranks: Ranks) -> None:
    with pytest.raises(Wrong) as rejected:
        check_property(load_wrong(level, bug, ranks), check)
    # An error in the file itself would be rejected too, with or without the bug.
    assert ("the loss raises" in str(rejected.value)) == (bug in RAISES), str(rejected.value)
    assert RAISES.get(bug, "") in str(rejected.value)


def test_the_docs_have_a_row_for_each_reported_bug() -> None:
    """A failure shows the row to paste."""
    rows = {}
    for module in LEVELS.values():
        for bug in module.BUGS.keys() & REPORTS.keys():
            check, what = module.BUGS[bug]
            rows[bug] = f"| `{bug}` | {what} | `{check}` | {', '.join(map(link, REPORTS[bug]))} |"
    assert rows.keys() == REPORTS.keys()
    page = (ROOT / "docs" / "wrong-losses.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `")] == [rows[bug] for bug in REPORTS]
    assert len(page) <= 60


def link(report: str) -> str:
    """A link to an address on GitHub. A link stays as it is."""
    if not report.startswith("https:"):
        return report
    *_, repository, _, number = report.split("/")
    return f"[{repository}#{number}]({report})"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("level", LEVELS)
def test_without_its_bug_it_passes(level: str, check: str, ranks: Ranks) -> None:
    """So the gate rejects the bug, and nothing else in the file."""
    check_property(load_wrong(level, None, ranks), check)


@pytest.mark.parametrize("check", [check for check in CHECKS if not is_style(check)])
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


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "confident"])
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
