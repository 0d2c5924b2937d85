"""What a process that measures is asked for, without the process."""

import sys
import time

import numpy as np
import pytest
import torch

from benchmarks import meters, worker, workloads

GIVEN = {"logits": {"input": torch.zeros(4, 8), "target": torch.zeros(4, dtype=torch.int64)}}


class Step:
    """Notes what its calls take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def forward(self) -> None:
        start = time.perf_counter()
        time.sleep(0.01 * (1 + len(self.seconds)))
        self.seconds.append(time.perf_counter() - start)


def test_a_planted_slowdown_is_a_share_of_the_calls_own_time() -> None:
    asked = worker.Worker(GIVEN, "cpu")
    step = asked.steps["logits.slow", "float32"] = Step()
    calls = asked.block("logits.slow", "float32", "forward", calls=5, slowdown=1.0, seed=0)
    # What else disturbs one only adds to it.
    assert min(np.divide(calls, step.seconds)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("name", "compiles"), [("compiled", True), ("eager", False)])
def test_what_compiles_is_known_as_it_is_imported(monkeypatch, name: str, compiles: bool) -> None:
    for module in [module for module in sys.modules if module.startswith("impls.")]:
        monkeypatch.delitem(sys.modules, module)
    assert worker.Worker(GIVEN, "cpu").compiles(f"logits.{name}", "float32") is compiles


@pytest.mark.parametrize(("free", "filled"), [(2**30, 8 * 160), (800, 100)])
def test_the_heap_is_filled_with_no_more_than_is_free(monkeypatch, free, filled) -> None:
    monkeypatch.setattr(workloads, "free_bytes", lambda device: free)
    asked = worker.Worker(GIVEN, "cpu")
    assert meters.peak_memory(lambda: asked.fill("logits"), "cpu") == filled
