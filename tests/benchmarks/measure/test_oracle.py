"""The error that all are held to: a relative norm, of which what is not finite is no part."""

import math

import pytest
import torch

from benchmarks.measure import oracle
from benchmarks.measure.oracle import error, worst_row
from benchmarks.workloads import workload

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("actual", "expected", "is_"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.1], [0.0, 0.0], INF),
        ([NAN, 4.0], [3.0, 4.0], INF),
        ([INF, 4.0], [3.0, 4.0], INF),
        ([-INF, 4.4], [-INF, 4.0], 0.1),
        ([NAN, 4.4], [NAN, 4.0], 0.1),
        ([INF, 4.0], [-INF, 4.0], INF),
        ([0.0, 4.0], [NAN, 4.0], INF),
        ([0.0, 4.0], [-INF, 4.0], INF),
        ([3.0], [3.0, 4.0], INF),
    ],
)
def test_error(actual: list[float], expected: list[float], is_: float) -> None:
    assert error(torch.tensor(actual), torch.tensor(expected)) == pytest.approx(is_)


def test_one_wrong_row_shows_in_the_worst() -> None:
    right = torch.ones(100, 4)
    wrong = right.clone()
    wrong[7] *= 2
    assert error(wrong, right) == pytest.approx(0.1)
    assert worst_row(wrong, right) == pytest.approx(1.0)


@pytest.mark.parametrize("level", ["logits", "linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_by_chunks_of_tokens_it_is_the_same(level: str, dtype: torch.dtype, monkeypatch) -> None:
    tensors = workload("tinystories_1m@8").tensors(level, str(dtype).removeprefix("torch."))
    tensors["target"][2] = -100
    upstream = torch.tensor(0.75, dtype=dtype)
    whole = oracle.expected(level, tensors, upstream)
    monkeypatch.setattr(oracle, "CHUNK", 30_000)  # of 8 tokens, 3, 3 and 2
    chunked = oracle.expected_in_chunks(level, tensors, upstream)
    assert chunked.keys() == whole.keys()
    for name, right in whole.items():
        assert chunked[name].dtype == torch.float64
        torch.testing.assert_close(chunked[name], right, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_by_chunks_of_tokens_options_count(reduction: str, monkeypatch) -> None:
    tensors = workload("tinystories_1m@8").tensors("linear", "float64")
    tensors["target"][2] = 7
    generator = torch.Generator().manual_seed(0)
    options = {
        "linear_bias": torch.randn(10_000, dtype=torch.float64, generator=generator),
        "weight": torch.rand(10_000, dtype=torch.float64, generator=generator),
        **{"ignore_index": 7, "reduction": reduction, "label_smoothing": 0.1},
        **{"softcap": 2.0, "z_loss": 0.05},
    }
    upstream = torch.rand(8 if reduction == "none" else (), generator=generator).double()
    arguments = {**tensors, **options}
    differentiable = {name: arguments.pop(name) for name in ("input", "linear_weight", "target")}
    whole = oracle.evaluate(oracle.linear_cross_entropy, {**differentiable, **arguments}, upstream)
    monkeypatch.setattr(oracle, "CHUNK", 30_000)  # of 8 tokens, 3, 3 and 2
    chunked = oracle.expected_in_chunks("linear", {**differentiable, **arguments}, upstream)
    assert chunked.keys() == whole.keys() == {"value", "input", "linear_weight", "linear_bias"}
    for name, right in whole.items():
        torch.testing.assert_close(chunked[name], right, rtol=1e-9, atol=1e-18)


def test_an_error_by_chunks_is_the_same(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    expected, noise = torch.randn(2, 100, 7, dtype=torch.float64, generator=generator)
    actual, column = expected + 1e-3 * noise, torch.arange(100) % 7
    y = column[:, None]
    whole = error(actual, expected)
    apart = error(actual.scatter(1, y, 0), expected.scatter(1, y, 0))
    expected[70, 0] = actual[70, 0] = INF
    monkeypatch.setattr(oracle, "CHUNK", 9 * 7)
    assert error(actual, expected) == pytest.approx(whole, rel=0.01)
    assert error(actual, expected, left_out=column) == pytest.approx(apart, rel=0.01)
    actual.scatter_(1, y, 5.0)
    assert error(actual, expected, left_out=column) == pytest.approx(apart, rel=0.01)
    actual[99, 0] = NAN
    assert error(actual, expected) == INF


def test_an_imprecise_native_loss_does_not_widen_the_budget() -> None:
    """F.cross_entropy with label smoothing is 2.7e-5 off in float32 at V = 32,000."""
    assert oracle.budget(2.7e-5, "float32") == pytest.approx(2.5e-5)
    assert oracle.budget(1e-7, "float32") == pytest.approx(1.2e-6)
    assert oracle.budget(5e-2, "float16") == pytest.approx(0.101)  # gradients below 6e-5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probabilities_and_entropies_are_those_of_a_categorical(temperature: float) -> None:
    tensors = workload("tinystories_1m@8").tensors("logprobs", "float64")
    logits = tensors["input"] @ tensors["linear_weight"].T / temperature
    categorical = torch.distributions.Categorical(logits=logits)
    log_p, entropy = oracle.token_logprobs(**tensors, temperature=temperature, entropy=True)
    torch.testing.assert_close(log_p, categorical.log_prob(tensors["target"]))
    torch.testing.assert_close(entropy, categorical.entropy())
