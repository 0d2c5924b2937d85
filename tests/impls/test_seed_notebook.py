"""The notebook with which this project began: our losses give the numbers that it prints."""

import pytest
import torch
import torch.nn.functional as F

import impls
from benchmarks import workloads


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return workloads.workload("notebook").tensors("logits", "float32")


def test_tokens() -> None:
    tokens = (
        "17250 11 703 389 345 30 314 716 4673 3272 40709 2994 290 703 340 318 3519 284 40709 13"
    )
    assert workloads.tokenizer().encode(workloads.SENTENCE) == [int(t) for t in tokens.split()]


def test_targets(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors["target"].tolist() == [3519, 284, 40709, 13, 2994, 290, 703, 340]


def test_probabilities_of_the_targets(tensors: dict[str, torch.Tensor]) -> None:
    p = tensors["input"].softmax(1).gather(1, tensors["target"][:, None]).squeeze(1)
    printed = [7.4362e-26, 3.1464e-18, 3.3123e-21, 5.2197e-21, 7.9674e-20, 4.7586e-18]
    assert f"{p[0]:.4e}" == "7.4362e-26"
    assert p.tolist() == pytest.approx([*printed, 1.8158e-23, 1.3934e-21], rel=5e-5)


def test_loss_to_the_last_digit(tensors: dict[str, torch.Tensor]) -> None:
    assert F.cross_entropy(**tensors).item() == 47.03350830078125


def test_loss_and_gradient(loss: impls.Loss) -> None:
    """Every implementation gives the notebook's loss, and a gradient ``allclose`` to autograd's."""
    if loss.level == "logprobs":
        loss = loss.as_linear()
    [device] = loss.support.devices
    tensors = workloads.workload("notebook").tensors(loss.level, "float32", device)
    leaf = tensors["input"].requires_grad_()
    logits = leaf if loss.level == "logits" else F.linear(leaf, tensors["linear_weight"])
    (autograd,) = torch.autograd.grad(F.cross_entropy(logits, tensors["target"]), [leaf])
    value = loss.fn(**tensors)  # last: it may overwrite its input
    assert value.item() == pytest.approx(47.03350830078125, rel=1e-6)
    (grad,) = torch.autograd.grad(value, [leaf])
    assert torch.allclose(grad, autograd, atol=1e-5)


def test_softmax_minus_one_hot(tensors: dict[str, torch.Tensor]) -> None:
    """The notebook's hand-written backward agrees with that of ``logits.eager``."""
    n = 8
    with torch.no_grad():
        dlogits = F.softmax(tensors["input"], dim=-1)
        dlogits[range(n), tensors["target"]] -= 1
        dlogits /= n
    leaf = tensors["input"].detach().requires_grad_()
    impls.load("logits.eager").fn(leaf, tensors["target"]).backward()
    assert torch.allclose(dlogits, leaf.grad)
