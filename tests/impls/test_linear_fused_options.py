"""linear.fused's own options: ``filter_eps`` and ``accum_dtype``."""

import pytest
import torch

import impls
from benchmarks import workloads
from benchmarks.measure import oracle
from benchmarks.workloads import workload

FUSED = impls.load("linear.fused").fn
N, D, V = 500, 48, 3000  # two chunks


def peaked(upstream: float = 0.75) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors whose softmax is all but 0 outside 40 classes, and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(V, D, generator=generator)
    weight[:40] += 0.3 * torch.randn(40, D, generator=generator)
    weight[:, 0] += torch.where(torch.arange(V) < 40, 1.0, -1.0)
    hidden = torch.randn(N, D, generator=generator)
    hidden[:, 0] = 4.0
    target = torch.randint(40, (N,), generator=generator)
    tensors = {"input": hidden, "linear_weight": weight, "target": target}
    return tensors, torch.tensor(upstream)


def test_filtering_stays_within_its_bound() -> None:
    tensors, upstream = peaked()
    expected = oracle.expected("linear", tensors, upstream)
    weight_norms = tensors["linear_weight"].norm(dim=1)  # |W_j|
    hidden_norms = tensors["input"].norm(dim=1)  # |h_i|
    for eps in (1e-6, 1e-4, 1e-2):
        actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=eps)
        bound = eps * upstream / N
        worst = {
            name: (actual[name] - expected[name]).norm(dim=1).max()
            for name in ("input", "linear_weight")
        }
        assert worst["input"] <= 2 * bound * V * weight_norms.max() + 1e-8
        assert worst["linear_weight"] <= bound * hidden_norms.sum() + 1e-8
    assert (actual["linear_weight"] == 0).all(1).sum() > V - 60  # the rows that are left out


def test_the_mean_replaces_the_columns_that_are_left_out() -> None:
    tensors, upstream = peaked()
    expected = oracle.expected("linear", tensors, upstream)["input"]
    actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=1e-4)["input"]
    grad = oracle.expected("logits", logits(tensors), upstream)["input"]
    left_out = (grad.view(2, -1, V).abs().amax(1) <= 1e-4 / N).repeat_interleave(N // 2, 0)
    without = expected - (grad * left_out) @ tensors["linear_weight"].double()
    assert oracle.error(actual, expected) < 0.1 * oracle.error(without, expected)


def logits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    x = tensors["input"].double() @ tensors["linear_weight"].double().T
    return {"input": x, "target": tensors["target"]}


def test_a_filter_of_zero_filters_nothing() -> None:
    tensors, upstream = peaked()
    expected = oracle.expected("linear", tensors, upstream)
    actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=0.0, label_smoothing=0.1)
    smoothed = oracle.expected("linear", tensors, upstream, label_smoothing=0.1)
    assert oracle.error(actual["input"], smoothed["input"]) < 1e-5
    assert oracle.error(actual["input"], expected["input"]) > 1e-3  # smoothing was not lost


def test_a_nan_is_not_filtered_out() -> None:
    tensors, upstream = peaked()
    tensors["input"][3] = torch.nan
    actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=1e-3)
    assert actual["linear_weight"].isnan().any()


def test_float32_sums_do_not_lose_precision_over_many_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 40 * 512
    tensors = {
        "input": torch.randn(n, D, generator=generator).bfloat16(),
        "linear_weight": 0.1 * torch.randn(67, D, generator=generator).bfloat16(),
        "target": torch.randint(67, (n,), generator=generator),
    }
    upstream = torch.tensor(0.75).bfloat16()
    expected = oracle.expected("linear", tensors, upstream)["linear_weight"]
    own, float32, native = (
        oracle.error(oracle.evaluate(fn, tensors, upstream, **options)["linear_weight"], expected)
        for fn, options in (
            (FUSED, {}),
            (FUSED, {"accum_dtype": torch.float32}),
            (impls.load("linear.builtin").fn, {}),
        )
    )
    assert float32 < 1.3 * native < own


def test_half_precision_keeps_its_precision_over_many_tokens() -> None:
    """The same rows come again and again, so that each chunk's rounding has the same sign."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 8, generator=generator).repeat(1025, 1)
    weight = torch.randn(257, 8, generator=generator)
    target = torch.randint(257, (32,), generator=generator).repeat(1025)
    tensors = {"input": hidden.bfloat16(), "linear_weight": weight.bfloat16(), "target": target}
    upstream = torch.tensor(0.75)
    expected = oracle.expected("linear", tensors, upstream)["linear_weight"]
    actual = oracle.evaluate(FUSED, tensors, upstream.bfloat16())["linear_weight"]
    assert oracle.error(actual, expected) < 0.011  # the gate's budget


@pytest.mark.slow
def test_the_trained_workload_is_peaked(monkeypatch) -> None:
    """It is so after a quarter of its training already."""
    monkeypatch.setattr(workloads, "TRAINING_STEPS", workloads.TRAINING_STEPS // 4)
    tensors = workload("gpt2_trained@64").tensors("linear", "float32")
    p = (tensors["input"] @ tensors["linear_weight"].T).softmax(1)
    assert (p > 2**-12).float().mean() < 0.05
    assert -p.gather(1, tensors["target"][:, None]).log().mean() < 8  # untrained: 10.8
