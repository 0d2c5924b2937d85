"""Level logprobs: how a file or a function is found to be at it, and what its users notice."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import impls
from benchmarks import edge_cases
from benchmarks.measure.references import REFERENCES
from benchmarks.measure.step import Step, describe_excess
from benchmarks.workloads import workload

THEIRS = """
from torch.nn.functional import linear
from impls.linear.builtin import linear_cross_entropy

def token_logprobs(input, linear_weight, target):
    return -linear_cross_entropy(input, linear_weight, target, reduction="none")

def selected(h, head, labels, temperature=1.0):
    return (linear(h, head) / temperature).log_softmax(1).gather(1, labels[:, None]).squeeze(1)
"""


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return workload("tinystories_1m@8").tensors("logprobs", "float32")


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> str:
    """A module whose name no other test has imported."""
    (tmp_path / f"{tmp_path.name}.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path.name


def test_files_and_functions_are_at_the_level(theirs: str, tmp_path, tensors) -> None:
    expected = impls.load("logprobs.builtin").fn(**tensors)
    for name, level in (
        (str(tmp_path / f"{theirs}.py"), None),  # though it imports a linear_cross_entropy
        (f"{theirs}:token_logprobs", None),
        (f"{theirs}:selected", "logprobs"),
    ):
        loss = impls.load(name, level)
        assert loss.level == "logprobs"
        torch.testing.assert_close(loss.fn(**tensors), expected)
    with pytest.raises(impls.UnknownImplementation, match="--level logits or linear or logprobs"):
        impls.load(f"{theirs}:selected")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_as_a_linear_loss_they_are_the_cross_entropy(reduction: str, tensors) -> None:
    loss = impls.load("logprobs.eager").as_linear()
    assert (loss.level, loss.name) == ("linear", "linear.logprobs.eager")
    assert loss.options == ("reduction", *impls.load("logprobs.eager").options)
    logits = tensors["input"] @ tensors["linear_weight"].T
    expected = F.cross_entropy(logits, tensors["target"], reduction=reduction)
    torch.testing.assert_close(loss.fn(**tensors, reduction=reduction), expected)


def test_entropies_are_computed_in_both_passes_with_a_weight_of_0(tensors) -> None:
    """So a step with entropies is timed, and its gradients are those of the plain step."""
    seen = []

    def token_logprobs(input, linear_weight, target, *, entropy=False):
        log_p, of_rows = impls.load("logprobs.eager").fn(
            input, linear_weight, target, entropy=entropy
        )
        of_rows.register_hook(seen.append)
        return log_p, of_rows

    loss = replace(impls.load("logprobs.eager"), fn=partial(token_logprobs, entropy=True))
    plain = Step(impls.load("logprobs.eager"), tensors)
    for actual, expected in zip(
        Step(loss, tensors).forward_backward(), plain.forward_backward(), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    assert [one.tolist() for one in seen] == [[0.0] * 8]


def test_a_step_is_measured_with_the_errors_of_its_gradients(tensors) -> None:
    def excess(name: str) -> str:
        step = Step(impls.load(name), tensors)
        assert step.name == name
        return describe_excess(step.errors_and_budgets(step.expected(), "float32"))

    assert excess("logprobs.chunked") == ""
    assert excess("logprobs.chunked(entropy=True)") == ""
    assert excess("logprobs.chunked(temperature=0.7)").startswith("gradients are wrong")
    assert REFERENCES["logprobs"](tensors).name == "logprobs.reference"


def test_an_unchanged_policy_has_a_ratio_of_exactly_1(tensors) -> None:
    """In half precision too: the log-probabilities are float32, and not rounded."""
    half = {
        name: one.bfloat16() if one.is_floating_point() else one for name, one in tensors.items()
    }
    fn = impls.load("logprobs.fused").fn
    with torch.no_grad():
        old = fn(**half)
    new = fn(**{**half, "input": half["input"].clone().requires_grad_()})
    assert torch.equal((new - old).exp(), torch.ones(8))


def test_masked_rows_have_no_gradient(tensors) -> None:
    """No target is ignored here: the caller multiplies by a mask."""
    leaf = tensors["input"].requires_grad_()
    mask = torch.tensor([1.0, 0.0] * 4)
    log_p, entropy = impls.load("logprobs.chunked").fn(**tensors, entropy=True)
    (grad,) = torch.autograd.grad(((log_p - 0.01 * entropy) * mask).sum(), leaf)
    assert grad.any(1).tolist() == mask.bool().tolist()


def test_edge_cases_are_those_of_the_mean(tmp_path, capsys) -> None:
    """In half precision the mean stays float32, as the log-probabilities are."""
    out = tmp_path / "edge_cases.csv"
    names = ["logprobs.builtin", "logprobs.chunked"]
    assert edge_cases.main([*(f"--impl={name}" for name in names), "--out", str(out)]) == 0
    found = pd.read_csv(out, keep_default_na=False).set_index("impl")
    assert list(found.index) == names
    for case, says in {
        "mean over no rows": "nan",
        "mean over rows that are all ignored": "raises IndexError",
        "a target of V, on the CPU": "raises IndexError",
        "label_smoothing=0.1": "not an option",
        "the input after forward and backward": "untouched",
        "dtype of the value for bfloat16": "float32",
    }.items():
        assert list(found[case]) == [says, says], case
    penalties = list(found["a penalty on its gradient"])
    assert penalties == ["differentiated", "raises RuntimeError"]
    assert "logprobs.chunked" in capsys.readouterr().out
