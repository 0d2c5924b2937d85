"""``python -m benchmarks gpu``: what it runs, keeps and says, on a machine that has no GPU."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.gpu.cli import environment, run_all
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.wheels import unpack
from tests.gate.runner import GROUPS


def code(name: str, code: str, limit: float = 60.0, result: Path | None = None) -> Stage:
    return Stage(name, name, ("-c", code), limit, result)


def test_stages_are_listed(capsys) -> None:
    assert main(["gpu", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(listed)) == [
        *("machine", "gate", "logits", "linear", "float32", "logprobs", "asv", "compare", "page")
    ]


def test_machine_says_what_it_can_do(tmp_path) -> None:
    assert main(["gpu", "--device", "cpu", "--stage", "machine", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "machine.json").read_text())
    assert found["torch"] == torch.__version__
    limits = {name: value for name, value in found.items() if "_per_s" in name}
    assert len(limits) == 4
    assert min(limits.values()) > 0
    assert "logits.eager" in (tmp_path / "01-machine.log").read_text()


def test_an_unknown_stage_is_refused_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["gpu", "--stage", "gaet"])
    assert refusal.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "gaet" in line
    assert "gate" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(tmp_path, capsys) -> None:
    assert main(["gpu", "--out", str(tmp_path / "results")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "there is no CUDA device here" in line
    assert "--device cpu" in line
    assert not (tmp_path / "results").exists()


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path, capsys) -> None:
    kept = tmp_path / "kept.csv"
    on_interrupt = (
        "import time\ntry: time.sleep(60)\n"
        f"except KeyboardInterrupt: open({str(kept)!r}, 'w').write('so far')"
    )
    planned = [
        code("raises", "raise ValueError('why')"),
        code("slow", on_interrupt, limit=2.0, result=kept),
        code("absent", "print('no such package'); exit(77)"),
        code("silent", "pass", result=tmp_path / "never.csv"),
        code("good", "import os; print('PYTHONPATH', os.environ['PYTHONPATH'])"),
    ]
    status = run_all(list(enumerate(planned, 1)), 300.0, tmp_path, environment(tmp_path))
    said = capsys.readouterr().out
    table = {line.split("  ")[0]: line for line in said.split("stage  ")[1].splitlines()[1:6]}
    assert status == 1
    assert "failed" in table["raises"]
    assert "ValueError: why" in said
    assert "out of time" in table["slow"]
    assert "kept.csv" in table["slow"]
    assert kept.read_text() == "so far"
    assert "skipped" in table["absent"]
    assert "no such package" in said
    assert "failed" in table["silent"]
    assert "no results" in said
    assert "passed" in table["good"]
    assert str(ROOT) in (tmp_path / "05-good.log").read_text()


def test_a_spent_budget_leaves_time_for_the_page(tmp_path, capsys) -> None:
    planned = [code("gate", "pass"), code("page", "print('made')")]
    assert run_all(list(enumerate(planned, 1)), 20.0, tmp_path, environment(tmp_path)) == 1
    gate, page = capsys.readouterr().out.split("stage  ")[1].splitlines()[1:3]
    assert "no time" in gate
    assert "passed" in page


def test_ctrl_c_keeps_what_there_is(tmp_path) -> None:
    """It ends the stage that runs, which writes what it has, and begins no other."""
    kept, began = tmp_path / "kept.csv", tmp_path / "began"
    stage = (
        f"import time, pathlib\npathlib.Path({str(began)!r}).touch()\ntry: time.sleep(60)\n"
        f"except KeyboardInterrupt: pathlib.Path({str(kept)!r}).write_text('so far')"
    )
    script = f"""
import os, signal, sys
from pathlib import Path
from benchmarks.gpu.cli import run_all
from benchmarks.gpu.stages import Stage
signal.signal(signal.SIGINT, signal.default_int_handler)
planned = [Stage("a", "a", ("-c", {stage!r}), 60.0), Stage("b", "b", ("-c", "print('b')"), 60.0)]
sys.exit(run_all(list(enumerate(planned, 1)), 300.0, Path({str(tmp_path)!r}), dict(os.environ)))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not began.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert kept.read_text() == "so far"
    assert not (tmp_path / "02-b.log").exists()


def wheel(folder: Path, name: str, tag: str = "py3-none-any") -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", "here = __file__\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_what_is_not_installed_comes_from_wheels(tmp_path, monkeypatch) -> None:
    wheel(tmp_path, "a_package_of_nobody")
    wheel(tmp_path, "pytest")
    wheel(tmp_path, "of_another_python", "cp27-cp27m-win32")
    lines = list(unpack(tmp_path, tmp_path / "unpacked"))
    assert [path.name for path in (tmp_path / "unpacked").iterdir() if "-" not in path.name] == [
        "a_package_of_nobody"
    ]
    assert any("pytest" in line and "is installed" in line for line in lines)
    assert any("of_another_python" in line and "not for this Python" in line for line in lines)

    monkeypatch.setenv("WHEELS", str(tmp_path))
    look = (
        "import importlib.metadata, pytest, a_package_of_nobody as a; print(pytest.__version__);"
        "found = importlib.metadata.distribution('a-package-of-nobody');"
        "print(open(found.locate_file('a_package_of_nobody/__init__.py')).read(), a.here)"
    )
    run = subprocess.run(
        [sys.executable, "-c", look],
        env=environment(tmp_path / "scratch"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(pytest.__version__)
    assert "here = __file__" in run.stdout


@pytest.mark.slow
def test_gate_outlives_what_breaks_cuda(tmp_path) -> None:
    """The worker ends, another takes its place, and every test has a row.

    Two groups of properties, of which a single one breaks CUDA.
    """
    out = tmp_path / "gate.csv"
    command = ["-m", "benchmarks.gate", "--device", "cpu", "--out", str(out)]
    run = subprocess.run(
        [sys.executable, *command, "--impl", "tests/files/breaks_cuda.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "--only calls,edge_cases"},
    )
    rows = pd.read_csv(out)
    assert run.returncode == 1, run.stdout
    assert rows["impl"].str.endswith("breaks_cuda.py").all()
    assert {*GROUPS["calls"], *GROUPS["edge_cases"]} == set(rows["property"])
    broken = rows[rows["property"] == "mismatches"].set_index("outcome")["message"]
    assert set(broken.index) == {"failed", "crashed"}
    assert "CUDA error: device-side assert" in broken["failed"]
    others = rows[rows["property"] != "mismatches"]
    assert set(others["outcome"]) <= {"passed", "skipped"}
