"""What a process that measures is asked for, without the process."""

import time

import pytest
import torch

from benchmarks import meters, worker, workloads

GIVEN = {"logits": {"input": torch.zeros(4, 8), "target": torch.zeros(4, dtype=torch.int64)}}


class Step:
    """Takes a hundredth of a second."""

    def forward(self) -> None:
        time.sleep(0.01)


def test_a_planted_slowdown_is_a_share_of_the_calls_own_time() -> None:
    asked = worker.Worker(GIVEN, "cpu")
    asked.steps["logits.slow", "float32"] = Step()
    calls = asked.block("logits.slow", "float32", "forward", calls=3, slowdown=1.0, seed=0)
    assert len(calls) == 3
    assert min(calls) >= 0.02


@pytest.mark.parametrize(("free", "filled"), [(2**30, 8 * 160), (800, 100)])
def test_the_heap_is_filled_with_no_more_than_is_free(monkeypatch, free, filled) -> None:
    monkeypatch.setattr(workloads, "free_bytes", lambda device: free)
    asked = worker.Worker(GIVEN, "cpu")
    assert meters.peak_memory(lambda: asked.fill("logits"), "cpu") == filled
