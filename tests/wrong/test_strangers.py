"""The gate of a loss from outside this repository: groups of properties and the short report."""

import os
import subprocess
import sys

import pytest

from benchmarks import ROOT
from tests.gate.runner import CHECKS, GROUPS, Outcome, is_stranger, report

THEIRS = """
import torch.nn.functional as F

def fused_ce(logits, labels, ignore_index=-100):
    return F.cross_entropy(logits, labels, ignore_index=ignore_index)

def clamps(logits, labels, ignore_index=-100):
    return fused_ce(logits, labels.clamp(0, logits.shape[1] - 1), ignore_index)

def no_float64(logits, labels, ignore_index=-100):
    assert logits.itemsize < 8
    return fused_ce(logits, labels, ignore_index)
"""


def gate(folder, losses: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the gate of ``losses``, names with spaces between. All share a process."""
    (folder / "their_losses.py").write_text(THEIRS)
    command = [sys.executable, "-m", "pytest", "tests/gate", "-q", "-p", "no:cacheprovider"]
    command += [f"--impl=their_losses:{name}" for name in losses.split()]
    command += ["--level", "logits", *arguments]
    path = {**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=path)


def test_house_style_is_reported_and_a_dtype_that_raises_is_left_out(tmp_path) -> None:
    """PyTorch's own loss raises RuntimeError for a float target, where we ask for ValueError."""
    some = "dtypes.float64 or positional or value_error"
    run = gate(tmp_path, "fused_ce no_float64", "-k", some)
    assert run.returncode == 0, run.stdout
    _, fused_ce, no_float64 = run.stdout.split("their_losses:")
    assert fused_ce.startswith("fused_ce is RIGHT (properties: fail 0, hold 2, do not apply 0)\n")
    assert "\nvalue_error (house style): the loss raises RuntimeError" in fused_ce
    assert no_float64.startswith("no_float64 is RIGHT (properties: fail 0, hold 1, do not apply 1)")
    assert "\nit does not take float64\n" in no_float64


def test_a_wrong_loss_is_named_by_property_and_case_and_house_style_may_be_asked_for(
    tmp_path,
) -> None:
    run = gate(tmp_path, "fused_ce clamps", "--only", "calls,style", "--style")
    assert run.returncode == 1
    _, fused_ce, clamps = run.stdout.split("their_losses:")
    assert fused_ce.startswith("fused_ce is WRONG (properties: fail 2")
    assert "\nvalue_error: the loss raises RuntimeError" in fused_ce
    assert clamps.startswith("clamps is WRONG")
    assert "\nout_of_range: for a target of 11 the loss returns" in clamps
    assert "Traceback" not in run.stdout
    assert len(run.stdout.splitlines()) <= 28


def test_an_unknown_group_is_refused(tmp_path) -> None:
    run = gate(tmp_path, "fused_ce", "--only", "values,cals")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--only: no group cals; there are values, edge_cases" in run.stderr


def test_the_report_has_at_most_20_lines() -> None:
    outcomes = [Outcome("a.py", check, "failed", "no") for check in reversed(CHECKS)]
    lines = report(outcomes)
    assert len(lines) == 20
    assert lines[:2] == [
        f"a.py is WRONG (properties: fail {len(CHECKS)}, hold 0, do not apply 0)",
        f"{GROUPS['values'][0]}: no",
    ]
    assert lines[-1] == f"… and {len(CHECKS) - 18} more"


def test_who_is_a_stranger() -> None:
    assert is_stranger("my_loss.py")
    assert is_stranger("their_losses:fused_ce(z_loss=0.1)")
    assert not is_stranger("linear.fused(softcap=30.0)")
