"""Triton kernels on the CPU: each gate runs in a process of its own, in Triton's interpreter."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from benchmarks import ROOT
from tests.gate.runner import is_of_logprobs
from tests.gate.test_gate import TESTS

# linear.fused and logprobs.fused call the Triton kernel on the CPU only in the interpreter.
TRITON = ("logits.triton", "logits.triton_in_place", "linear.fused", "logprobs.fused")
LIGER = ("logits.liger", "linear.liger")

INTERPRET = {**os.environ, "TRITON_INTERPRET": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=INTERPRET, capture_output=True, text=True)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton has no build for this platform"
)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRITON, *LIGER])
def test_gate_holds_in_the_interpreter(name: str) -> None:
    gate = run("pytest", "tests/gate/test_gate.py", "--require-all", "--impl", name)
    assert gate.returncode == 0, gate.stdout
    counts = {
        outcome: int(count) for count, outcome in re.findall(r"(\d+) (\w+)", gate.stdout[-200:])
    }
    assert counts["passed"] >= 15
    ran = sum(counts.get(outcome, 0) for outcome in ("passed", "xfailed", "skipped"))
    is_of_level = name.startswith("logprobs.")
    expected = [test for test in TESTS if is_of_level or not is_of_logprobs(test)]
    assert ran == len(expected) + 1  # and test_deviations_are_from_properties


@needs_triton
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_target_out_of_range_touches_no_other_row(smoothing: float) -> None:
    """The kernel must check targets itself: on a GPU the host does not read them."""
    code = f"""if True:
        import torch
        from impls.kernels.cross_entropy_triton import losses_and_gradient

        x = torch.randn(3, 50)
        weight = torch.full((3,), 1 - {smoothing})
        smoothing = torch.full((50,), {smoothing} / 50) if {smoothing} else None
        options = weight, smoothing, torch.ones(3), None, 0.0
        for outside in (-1, 50, 1000):
            y = torch.tensor([7, outside, 3])
            losses, grad = losses_and_gradient(x, y, *options)
            expected, expected_grad = losses_and_gradient(x, y.clamp(0, 49), *options)
            assert losses[1].isnan() and grad[1].isnan().all(), outside
            for row in (0, 2):
                assert losses[row] == expected[row], outside
                assert torch.equal(grad[row], expected_grad[row]), outside
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=INTERPRET, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_benchmarks_refuse_to_time_the_interpreter(tmp_path) -> None:
    refused = run("benchmarks", "--out", str(tmp_path / "rows.csv"))
    assert refused.returncode == 2
    assert refused.stderr == "TRITON_INTERPRET is set: its interpreter shows values, not times\n"
