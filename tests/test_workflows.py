"""The workflow that runs the tests, the action for other repositories, and the workflow to copy."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest

from benchmarks import ROOT
from benchmarks.compare.cli import parse
from tests.github import action, read

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


def test_the_file_is_a_composite_action() -> None:
    found = action()
    assert found.keys() == {"name", "description", "inputs", "runs"}
    assert found["runs"].keys() == {"using", "steps"}
    assert found["runs"]["using"] == "composite"
    for name, of in found["inputs"].items():
        assert of["description"], name
        assert isinstance(of.get("default", ""), str), name  # GitHub passes strings
        assert (of.get("required") is True) != ("default" in of), name
    for step in found["runs"]["steps"]:
        assert step.keys() <= {
            *("id", "name", "if", "env", "shell", "run", "working-directory", "uses", "with")
        }
        assert ("run" in step) != ("uses" in step), step
        if "run" in step:
            assert step["shell"] == "bash"
        else:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_each_input_is_used_and_none_is_in_the_text_of_a_script() -> None:
    steps = action()["runs"]["steps"]
    used = set(re.findall(r"\binputs\.(\w+)", json.dumps(steps)))
    assert used == action()["inputs"].keys()
    assert not [step["run"] for step in steps if "${{" in step.get("run", "")]


def test_the_raw_pairs_are_kept_also_after_a_failure() -> None:
    [keep] = [one for one in action()["runs"]["steps"] if "upload-artifact" in one.get("uses", "")]
    assert keep["if"].startswith("always() && ")
    assert keep["with"] == {
        "name": "${{ steps.guard.outputs.artifact }}",
        "path": "${{ steps.guard.outputs.folder }}",
    }


def test_defaults_are_those_of_compare() -> None:
    inputs, usual = action()["inputs"], parse(["main"])
    assert float(inputs["margin"]["default"]) == usual.margin
    assert float(inputs["budget"]["default"]) == usual.budget


def test_the_workflow_to_copy_uses_the_action_without_secrets() -> None:
    text = (ROOT / "docs/guard.md").read_text()
    [workflow] = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = read(workflow)
    assert found[True] == "pull_request"  # YAML 1.1 takes "on" for true
    assert found["permissions"] == {"contents": "read"}
    assert "secrets." not in workflow
    [job] = found["jobs"].values()
    checkout, use = job["steps"]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    assert use["uses"].startswith("OWNER/cross-entropy-bench@")
    inputs = action()["inputs"]
    assert use["with"].keys() <= inputs.keys()
    assert use["with"].keys() >= {name for name, of in inputs.items() if of.get("required")}
