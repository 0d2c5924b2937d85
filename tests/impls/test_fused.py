"""What linear.fused offers beside PyTorch's options: filtering, and the precision of its sums."""

import torch

import impls
from benchmarks import workloads
from benchmarks.measure import oracle
from benchmarks.workloads import workload

FUSED = impls.load("linear.fused").fn
N, D, V = 500, 48, 3000  # two chunks


def peaked(upstream: float = 0.75) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Logits of which each row has a few that count, among a few dozen classes."""
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
    weight, hidden = tensors["linear_weight"].norm(dim=1), tensors["input"].norm(dim=1)
    for eps in (1e-6, 1e-4, 1e-2):
        actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=eps)
        share = eps * upstream / N
        off = {
            name: (actual[name] - expected[name]).norm(dim=1).max()
            for name in ("input", "linear_weight")
        }
        assert off["input"] <= 2 * share * V * weight.max() + 1e-8
        assert off["linear_weight"] <= share * hidden.sum() + 1e-8
    assert (actual["linear_weight"] == 0).all(1).sum() > V - 60  # these are left out


def test_what_is_left_out_is_made_up_for_by_its_mean() -> None:
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
    assert oracle.error(actual["input"], expected["input"]) > 1e-3  # it is the smoothed one


def test_a_nan_is_not_filtered_out() -> None:
    tensors, upstream = peaked()
    tensors["input"][3] = torch.nan
    actual = oracle.evaluate(FUSED, tensors, upstream, filter_eps=1e-3)
    assert actual["linear_weight"].isnan().any()


def test_sums_in_float32_do_not_lose_with_the_number_of_chunks() -> None:
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
        oracle.error(oracle.evaluate(fn, tensors, upstream, **more)["linear_weight"], expected)
        for fn, more in (
            (FUSED, {}),
            (FUSED, {"accum_dtype": torch.float32}),
            (impls.load("linear.builtin").fn, {}),
        )
    )
    assert float32 < 1.5 * native < own


def test_the_trained_workload_is_peaked(monkeypatch) -> None:
    """After a quarter of its training already."""
    monkeypatch.setattr(workloads, "TRAINING_STEPS", workloads.TRAINING_STEPS // 4)
    tensors = workload("gpt2_trained@64").tensors("linear", "float32")
    p = (tensors["input"] @ tensors["linear_weight"].T).softmax(1)
    assert (p > 2**-12).float().mean() < 0.05
    assert -p.gather(1, tensors["target"][:, None]).log().mean() < 8  # untrained: 10.8
