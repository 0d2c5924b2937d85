"""The workflow that runs the tests: on which Pythons, and that its commands are the Makefile's."""

import re
import shlex
import shutil
import subprocess
import tomllib

import pytest

from benchmarks import ROOT

TEXT = (ROOT / ".github/workflows/tests.yml").read_text()
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def job() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(TEXT)["jobs"]["tests"]


def test_each_python_is_tested_by_itself() -> None:
    strategy = job()["strategy"]
    assert strategy["matrix"] == {"python": PYTHONS}
    assert strategy["fail-fast"] is False  # a failure on one says nothing of the others
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    [version] = [step["with"] for step in job()["steps"] if "setup-python" in step.get("uses", "")]
    assert version == {"python-version": "${{ matrix.python }}"}


def test_pushes_and_pull_requests_run_it_without_secrets() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(TEXT)
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 takes "on" for true
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in TEXT


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_its_commands_lint_and_test_with_the_python_that_it_names(tmp_path) -> None:
    commands = [step["run"] for step in job()["steps"] if "run" in step]
    targets = []
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for command in commands:
        words = shlex.split(command.replace("${{ matrix.python }}", "3.13"))
        made = subprocess.run(
            [*words, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.search(r"\bpython3\.13 -m venv \.venv\b", made.stdout)
        targets.append((words[:2], made.stdout))
    (lint, linted), (test, tested) = targets
    assert lint == ["make", "lint"]
    assert test == ["make", "test"]
    assert "ruff check" in linted
    assert "mypy" in linted
    assert "pytest" in tested
