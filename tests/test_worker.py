"""What a process that measures is asked for, without the process."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import meters, worker, workloads

ROOT = Path(__file__).parents[1]
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
    asked = worker.Worker(GIVEN, "cpu", set())
    step = asked.steps["logits.slow", "float32"] = Step()
    calls = asked.block("logits.slow", "float32", "forward", calls=5, slowdown=1.0, seed=0)
    # What else disturbs one only adds to it.
    assert min(np.divide(calls, step.seconds)) == pytest.approx(2, abs=0.1)


def test_what_compiles_is_known_as_it_is_imported(tmp_path) -> None:
    """In a process of its own, as here a loss, or the compiler, may have been imported before."""
    decorated = tmp_path / "decorated.py"
    decorated.write_text(
        "import torch\n"
        "@torch.compile(fullgraph=True)\n"
        "def cross_entropy(input, target): return input.sum()\n"
    )
    names = ["logits.builtin", "logits.eager", "logits.compiled", str(decorated)]
    code = f"""if True:
        import sys
        from benchmarks.worker import Worker
        asked = Worker({{}}, "cpu", set())
        print([asked.compiles(name, "float32") for name in {names}])
        print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
    """
    asked = [sys.executable, "-c", code]
    out = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[False, False, True, True]", "False False"]


@pytest.mark.parametrize(("free", "filled"), [(2**30, 8 * 160 + 64 * 2**20), (800, 100)])
def test_the_heap_is_filled_with_no_more_than_is_free(monkeypatch, free, filled) -> None:
    monkeypatch.setattr(workloads, "free_bytes", lambda device: free)
    asked = worker.Worker(GIVEN, "cpu", set())
    assert meters.peak_memory(lambda: asked.fill("logits"), "cpu") == filled
