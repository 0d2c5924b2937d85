"""What a process that measures is asked for, without the process."""

import os
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


def test_what_is_compiled_once_loads_the_patterns_that_a_loss_is_searched_for() -> None:
    """Attention's take a second. In a process of its own: the tests' may have compiled before."""
    code = """if True:
        import sys
        import torch
        from benchmarks import worker
        given = {"input": torch.randn(4, 8), "target": torch.arange(4)}
        asked = worker.Worker({"logits": given}, "cpu", set())
        steps = [asked.step(name, "float32") for name in ("logits.compiled", "logits.fused")]
        worker.compile_once()
        before = set(sys.modules)
        for step in steps:
            step.forward_backward()
        print([name for name in set(sys.modules) - before if "fuse_attention" in name])
    """
    asked = [sys.executable, "-c", code]
    out = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not bound here")
def test_a_first_call_runs_on_any_core_and_the_others_on_that_one_again() -> None:
    seen = []

    class Step:
        def forward(self) -> None:
            seen.append(os.sched_getaffinity(0))

    cores = os.sched_getaffinity(0)
    asked = worker.Worker(GIVEN, "cpu", cores)
    asked.steps["logits.seen", "float32"] = Step()
    bound = {min(cores)}
    os.sched_setaffinity(0, bound)
    try:
        asked.warm_up("logits.seen", "float32", "forward")
        asked.block("logits.seen", "float32", "forward", calls=1, slowdown=0.0, seed=0)
    finally:
        os.sched_setaffinity(0, cores)
    assert seen == [cores, bound]


@pytest.mark.parametrize(("free", "filled"), [(2**30, 8 * 160 + 64 * 2**20), (800, 100)])
def test_the_heap_is_filled_with_no_more_than_is_free(monkeypatch, free, filled) -> None:
    monkeypatch.setattr(workloads, "free_bytes", lambda device: free)
    asked = worker.Worker(GIVEN, "cpu", set())
    assert meters.peak_memory(lambda: asked.fill("logits"), "cpu") == filled
