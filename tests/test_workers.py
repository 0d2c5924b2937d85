"""``make test`` shares out whole files, and in the gate whole losses."""

import re
import subprocess
import sys
from collections import defaultdict

import pytest

from benchmarks import ROOT
from tests.workers import group

FILES = ("tests/benchmarks/test_requests.py", "tests/benchmarks/test_workloads.py")


@pytest.mark.slow
def test_a_worker_runs_all_tests_of_a_file() -> None:
    command = [sys.executable, "-m", "pytest", "-v", "--numprocesses", "2", "--dist", "loadgroup"]
    done = subprocess.run([*command, *FILES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    workers = defaultdict(set)
    for worker, file in re.findall(r"^\[(gw\d)\].* (tests/\S+?)::", done.stdout, re.MULTILINE):
        workers[file].add(worker)
    assert {file: len(of_file) for file, of_file in workers.items()} == dict.fromkeys(FILES, 1)


def test_a_worker_runs_all_tests_of_a_loss_in_the_gate() -> None:
    gate = "tests/gate/test_gate.py::test_gate"
    of_fused = {group(f"{gate}[logits.fused-{test}]") for test in ("sizes", "dtypes.float32")}
    of_ranks = {group(f"{gate}[sharded.fused-{k}-ranks-sizes]") for k in (1, 3)}
    assert len(of_fused) == len(of_ranks) == 1
    assert of_fused != of_ranks
