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
    {first}
    return F.cross_entropy(logits, labels, ignore_index=ignore_index)
"""


def gate(folder, *arguments: str, first: str = "pass") -> subprocess.CompletedProcess[str]:
    (folder / "their_losses.py").write_text(THEIRS.format(first=first))
    command = [sys.executable, "-m", "pytest", "tests/gate", "-q", "-p", "no:cacheprovider"]
    command += ["--impl", "their_losses:fused_ce", "--level", "logits", *arguments]
    path = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=path)


def test_house_style_is_reported_and_not_failed(tmp_path) -> None:
    """PyTorch's own loss raises RuntimeError for a float target, where we ask for ValueError."""
    run = gate(tmp_path, "--only", "calls,style")
    assert run.returncode == 0, run.stdout
    assert "their_losses:fused_ce is RIGHT (properties: fail 0" in run.stdout
    assert "value_error (house style): the loss raises RuntimeError" in run.stdout
    run = gate(tmp_path, "--only", "style", "--style")
    assert run.returncode == 1
    assert "their_losses:fused_ce is WRONG (properties: fail 2" in run.stdout
    assert "\nvalue_error: the loss raises RuntimeError" in run.stdout


def test_a_wrong_loss_is_named_by_property_and_case(tmp_path) -> None:
    run = gate(tmp_path, "--only", "calls", first="labels = labels.clamp(0, logits.shape[1] - 1)")
    assert run.returncode == 1
    assert "their_losses:fused_ce is WRONG" in run.stdout
    assert "\nout_of_range: for a target of 11 the loss returns" in run.stdout
    assert "Traceback" not in run.stdout
    assert len(run.stdout.splitlines()) <= 24


def test_a_dtype_that_raises_is_left_out(tmp_path) -> None:
    run = gate(tmp_path, "-k", "dtypes.float64", first="assert logits.itemsize < 8")
    assert run.returncode == 0, run.stdout
    run = gate(tmp_path, "-k", "dtypes.float64 or positional", first="assert logits.itemsize < 8")
    assert "it does not take float64" in run.stdout


def test_an_unknown_group_is_refused(tmp_path) -> None:
    run = gate(tmp_path, "--only", "values,cals")
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
