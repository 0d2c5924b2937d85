"""What a process that measures is asked for, without the process."""

import os
import shutil
import subprocess
import sys
import threading
import time
from operator import attrgetter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from benchmarks import ROOT, requests
from benchmarks.compare import client, server
from benchmarks.measure import memory

GIVEN = {"logits": {"input": torch.zeros(4, 8), "target": torch.zeros(4, dtype=torch.int64)}}


def given(cores: set[int] = frozenset()) -> server.Worker:
    asked = server.Worker(Path(), cores)
    asked.given = GIVEN
    return asked


def in_a_process(code: str) -> list[str]:
    """What it prints. Here a loss, or the compiler, may have been imported before."""
    asked = [sys.executable, "-c", code]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


class Step:
    """Notes what its calls take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def forward(self) -> None:
        start = time.perf_counter()
        time.sleep(0.01 * (1 + len(self.seconds)))
        self.seconds.append(time.perf_counter() - start)


def test_an_injected_slowdown_is_a_share_of_the_calls_own_time() -> None:
    asked = given()
    step = asked.steps["logits.slow", "float32"] = Step()
    calls = asked.block("logits.slow", "float32", "forward", calls=5, slowdown=1.0, seed=0)
    # What else disturbs one only adds to it.
    assert min(np.divide(calls, step.seconds)) == pytest.approx(2, abs=0.1)


def test_what_compiles_is_known_as_it_is_imported(tmp_path) -> None:
    decorated = tmp_path / "decorated.py"
    decorated.write_text(
        "import torch\n"
        "@torch.compile(fullgraph=True)\n"
        "def cross_entropy(input, target): return input.sum()\n"
    )
    names = ["logits.builtin", "logits.eager", "logits.compiled", str(decorated)]
    code = f"""if True:
        import sys
        from pathlib import Path
        from benchmarks.compare.server import Worker
        asked = Worker(Path(), set())
        print([asked.describe(name, "float32")["compiles"] for name in {names}])
        print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
    """
    assert in_a_process(code) == ["[False, False, True, True]", "False False"]


@pytest.mark.slow
def test_what_is_compiled_once_loads_the_patterns_that_a_loss_is_searched_for() -> None:
    """Attention's take a second."""
    code = """if True:
        import sys
        from pathlib import Path
        import torch
        from benchmarks.compare.server import Worker
        asked = Worker(Path(), set())
        asked.given = {"logits": {"input": torch.randn(4, 8), "target": torch.arange(4)}}
        steps = [asked.step(name, "float32") for name in ("logits.compiled", "logits.fused")]
        asked.compile_once()
        before = set(sys.modules)
        for step in steps:
            step.forward_backward()
        print([name for name in set(sys.modules) - before if "fuse_attention" in name])
    """
    assert in_a_process(code) == ["[]"]


@pytest.mark.slow
def test_a_fork_of_what_is_prepared_has_its_loss_compiled_and_threads_of_its_own() -> None:
    """Did it wait for those of the process that it is a fork of, it would wait for ever."""
    code = """if True:
        import os
        from pathlib import Path
        import torch
        from benchmarks.measure.torch_compat import compiled_graphs
        from benchmarks.compare.server import Worker
        asked = Worker(Path(), set())
        given = {"input": torch.randn(32, 50257), "target": torch.arange(32)}
        asked.given = {"logits": given}
        asked.prepare("logits.compiled", "float32")
        compiled = compiled_graphs()
        if os.fork() == 0:
            asked.step("logits.compiled", "float32").forward_backward()
            print(compiled > 0, compiled_graphs() - compiled, flush=True)
            os._exit(0)
        os.wait()
    """
    assert in_a_process(code) == ["True 0"]


def test_a_loss_that_never_returns_is_named_in_time_and_its_process_killed(
    tmp_path, monkeypatch
) -> None:
    shutil.copytree(ROOT / "impls", tmp_path / "impls")
    loss = "def cross_entropy(input, target):\n    while True: pass\n"
    (tmp_path / "impls/logits/endless.py").write_text(loss)
    with client.Server(on_cuda=False) as asked:
        torch.save(GIVEN["logits"], asked.folder / "logits.pt")
        asked.ask("give", device="cpu")
        fork = asked.fork("HEAD", [str(tmp_path)])
        monkeypatch.setattr(client, "LIMIT", 2.0)
        with pytest.raises(
            client.ProcessFailed, match=r"^HEAD did not answer 'prepare' within 2 s$"
        ):
            fork.ask("prepare", impl="logits.endless", dtype="float32")
        processes = [asked.popen.pid, *map(attrgetter("pid"), children(asked.popen.pid))]
    assert len(processes) == 2
    for _ in range(100):
        if not any(map(psutil.pid_exists, processes)):
            break
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, processes))


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("stays", [False, True])
def test_threads_that_outlive_a_call_are_told(stays) -> None:
    end = threading.Event()
    started = threading.Thread(target=end.wait, args=[None if stays else 0.3])
    try:
        assert server.in_thread(started.start) is not stays
    finally:
        end.set()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not bound here")
def test_a_first_call_runs_on_any_core_and_the_others_on_that_one_again() -> None:
    seen = []

    class Step:
        def forward(self) -> None:
            seen.append(os.sched_getaffinity(0))

    cores = os.sched_getaffinity(0)
    asked = given(cores)
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
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    asked = given()
    assert memory.peak_memory(lambda: asked.fill("logits"), "cpu") == filled


@pytest.mark.parametrize("on_cuda", [False, True])
def test_the_path_is_kept_and_a_gpu_is_seen_only_where_it_measures(on_cuda, monkeypatch) -> None:
    seen = {}

    def popen(*_, env: dict[str, str], **__) -> None:
        seen.update(env)
        raise OSError("enough was seen")

    monkeypatch.setenv("PYTHONPATH", "theirs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(requests.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="enough was seen"):
        client.Server(on_cuda)
    assert seen["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "theirs"]
    assert seen["CUDA_VISIBLE_DEVICES"] == ("1" if on_cuda else "")
