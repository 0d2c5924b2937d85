"""``pytest --benchmark-only``: what it prints and what its JSON says."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import ROOT
from benchmarks.environment.variables import PINNED_ALLOCATOR
from reports.analysis.selection import cells
from reports.readers.files import read
from reports.render import terminal

SLOW = "tests/files/three_times.py"


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> tuple[str, object]:
    """What the quick loop prints for a loss that takes three times as long, and its JSON."""
    out = tmp_path_factory.mktemp("quick") / "loop.json"
    words = ["--benchmark-only", "tests/impls/test_speed.py", "--impl", SLOW]
    changed = {*PINNED_ALLOCATOR, "PYTEST_XDIST_WORKER"}  # its workers do not time
    kept = {name: value for name, value in os.environ.items() if name not in changed}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--benchmark-json", str(out)],
        **{"cwd": ROOT, "env": kept, "capture_output": True, "text": True},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, out


@pytest.mark.slow
def test_it_prints_ratios_to_builtin_and_its_json_has_them(loop) -> None:
    printed, file = loop
    found = json.loads(file.read_text())["benchmarks"]
    assert len(found) == 3
    for benchmark in found:
        cell = benchmark["extra_info"]
        ratio, low, high = cell["× builtin"]
        assert low <= ratio <= high
        assert ratio > 1.5  # 3 on a quiet machine
        assert f"{ratio:.2f} [{low:.2f}, {high:.2f}]  {cell['impl']} {cell['metric']}" in printed
    assert printed.count("test session starts") == 1


@pytest.mark.slow
def test_reports_shows_the_ratios_of_the_rounds(loop) -> None:
    _, file = loop
    rows, notes = read([file])
    assert not notes
    assert set(rows["allocator"]) == ({"pinned"} if sys.platform == "linux" else {"default"})
    [of] = [one for one in json.loads(file.read_text())["benchmarks"] if "forward_" in one["name"]]
    [cell] = cells(rows)
    table = terminal.table(cell, 80)
    shown = dict(zip(table.columns[0].cells, table.columns[2].cells, strict=True))
    assert shown["builtin"] == "1.00"
    assert shown[SLOW] == f"{of['extra_info']['× builtin'][0]:.2f}"
