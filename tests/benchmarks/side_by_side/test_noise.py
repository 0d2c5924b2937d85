"""Which times a run calls noisy."""

import numpy as np
import pytest

from benchmarks.side_by_side.noise import noisy_times

REFERENCE = "logits.reference"


def run(
    ratio: float = 2.0, scatter: float = 0.02, later: float = 1.0, speed: float = 1.0, seed: int = 0
) -> dict[tuple[str, str], list[float]]:
    """Twenty rounds of a loss and the reference, on a machine that changes its ``speed`` midway."""
    rng = np.random.default_rng(seed)
    machine = np.r_[np.ones(10), speed * np.ones(10)]
    reference = machine * rng.normal(1, 0.01, 20)
    loss = ratio * machine * rng.normal(1, scatter, 20) * np.r_[np.ones(10), later * np.ones(10)]
    return {
        (REFERENCE, "forward"): list(reference),
        ("logits.eager", "forward"): list(loss),
        (REFERENCE, "forward_backward"): list(2 * reference),
        ("logits.eager", "forward_backward"): list(2 * loss),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_steady_run_has_none(seed: int) -> None:
    assert noisy_times(run(seed=seed), REFERENCE) == set()


def test_a_machine_that_slows_down_makes_the_reference_noisy_and_no_ratio() -> None:
    assert noisy_times(run(speed=2.0), REFERENCE) == {
        (REFERENCE, "forward"),
        (REFERENCE, "forward_backward"),
    }


def test_memory_that_slows_down_makes_the_reference_noisy_and_no_loss() -> None:
    rng = np.random.default_rng(0)
    memory = np.r_[np.ones(10), 1.5 * np.ones(10)]
    losses = {f"logits.{n}": 10 * memory**0.1 * rng.normal(1, 0.02, 20) for n in range(4)}
    times = {REFERENCE: memory * rng.normal(1, 0.02, 20), **losses}
    assert noisy_times(
        {(impl, "forward"): list(taken) for impl, taken in times.items()}, REFERENCE
    ) == {(REFERENCE, "forward")}


def test_a_loss_that_scatters_makes_no_other_noisy() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scatters = {f"logits.{n}": 0.02 for n in range(3)} | {"logits.bad": 0.6}
        times = {REFERENCE: rng.normal(1, 0.02, 7)}
        times |= {name: 5 * rng.lognormal(0, scatter, 7) for name, scatter in scatters.items()}
        found = noisy_times({(impl, "forward"): list(of) for impl, of in times.items()}, REFERENCE)
        assert found <= {("logits.bad", "forward")}


@pytest.mark.filterwarnings("error")
def test_one_sample_is_noisy() -> None:
    one = {(REFERENCE, "forward"): [1.0], ("logits.eager", "forward"): [2.0]}
    assert noisy_times(one, REFERENCE) == {*one}


def test_a_loss_that_scatters_or_drifts_is_noisy() -> None:
    both = {("logits.eager", "forward"), ("logits.eager", "forward_backward")}
    assert noisy_times(run(scatter=0.5), REFERENCE) == both
    assert noisy_times(run(later=1.18, scatter=0.01), REFERENCE) == both
    assert noisy_times(run(later=1.10, scatter=0.01), REFERENCE) == set()


def test_a_forward_that_takes_longer_than_both_passes_is_noisy() -> None:
    times = run()
    times["logits.eager", "forward"] = [3 * one for one in times["logits.eager", "forward"]]
    assert ("logits.eager", "forward_backward") in noisy_times(times, REFERENCE)
