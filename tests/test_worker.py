"""What a process that measures is asked for, without the process."""

import time

import torch

from benchmarks import worker

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
