"""Runs the steps of action.yml as GitHub runs them, for a repository made here."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ROOT

LOSSES = '''
import torch
import torch.nn.functional as F


class Keep(torch.autograd.Function):
    """Its input. Backward keeps some bytes, and scales the gradient."""

    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(torch.zeros(KEPT, dtype=torch.uint8))
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.saved_tensors
        return grad * SCALE


def fused_ce(input, target, ignore_index=-100):
    return Keep.apply(F.cross_entropy(input, target, ignore_index=ignore_index))
'''
# Instead of the harness's Python: it notes how it is called, and ends as it is told.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path

here, command = Path(__file__).parent, sys.argv[3]
call = {{"words": sys.argv[3:], "path": os.environ["PYTHONPATH"], "folder": os.getcwd()}}
with open(here / "calls", "a") as calls:
    print(json.dumps(call), file=calls)
print(f"{{command}} has run", flush=True)
print("measuring: 3 done", file=sys.stderr)
code = here / command
sys.exit(int(code.read_text()) if code.exists() else 0)
"""


def read(text: str) -> dict:
    return pytest.importorskip("yaml").safe_load(text)


def action() -> dict:
    return read((ROOT / "action.yml").read_text())


def run_steps() -> list[dict]:
    """The steps that are shell scripts."""
    return [step for step in action()["runs"]["steps"] if "run" in step]


@dataclass
class Runner:
    """A machine of GitHub: the action's files, a checkout of their repository, and the job."""

    action: Path
    checkout: Path
    job: dict[str, str]  # variables

    def use(self, **given: str) -> tuple[int, str]:
        """Run the steps with these inputs. Returns the exit code, and what was printed."""
        inputs = {name: of.get("default", "") for name, of in action()["inputs"].items()} | given
        holds = {"inputs.install != ''": bool(inputs["install"])}
        said = ""
        for step in run_steps():
            if "if" in step and not holds[step["if"]]:
                continue
            done = self.run(step, inputs)
            said += done.stdout
            if done.returncode:
                return done.returncode, said
        return 0, said

    def run(self, step: dict, inputs: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Put the inputs where the step names them, also in its script, and run it."""

        def value(text: str) -> str:
            text = text.replace("${{ steps.python.outputs.python-path }}", sys.executable)
            return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], text)

        script = self.checkout.parent / "step.sh"
        script.write_text(value(step["run"]))
        variables = {name: value(text) for name, text in step.get("env", {}).items()}
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
            cwd=self.checkout / value(step.get("working-directory", ".")),
            env=os.environ | self.job | variables,
        )

    def stand_in(self, **codes: int) -> None:
        """Let pytest and benchmarks be stand-ins that end with these exit codes."""
        self.python(STAND_IN)
        for command, code in codes.items():
            (self.action / ".venv/bin" / command).write_text(str(code))

    def python(self, script: str) -> None:
        """Let this script be the Python of an environment that is set up."""
        python = self.action / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(script)
        python.chmod(0o755)
        (python.parent / "activate").write_text(f'PATH="{python.parent}:$PATH"\n')
        (python.parents[1] / "ready").touch()

    def calls(self) -> dict[str, Any]:
        """How each command was called."""
        lines = (self.action / ".venv/bin/calls").read_text().splitlines()
        return {call["words"][0]: call for call in map(json.loads, lines)}

    def summary(self) -> str:
        return Path(self.job["GITHUB_STEP_SUMMARY"]).read_text()

    def outputs(self) -> dict[str, str]:
        lines = Path(self.job["GITHUB_OUTPUT"]).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


def new_runner(tmp_path: Path) -> Runner:
    """A runner with a pull request that changes nothing, of a repository with confusing folders."""
    files = tmp_path / "action"
    names = ("benchmarks", "impls", "reports", "tests", ".github")
    ignore = shutil.ignore_patterns("__pycache__", "measured", "out")
    for name in names:
        shutil.copytree(ROOT / name, files / name, ignore=ignore)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, files)
    checkout = tmp_path / "checkout"
    for folder in ("their_package", "benchmarks", "tests"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "__init__.py").touch()
    write(checkout)
    git(checkout, "init", "-q", "-b", "main")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "the base")
    git(checkout, "update-ref", "refs/remotes/origin/main", "HEAD")
    job = {
        "GITHUB_ACTION_PATH": str(files),
        "GITHUB_BASE_REF": "main",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "RUNNER_TEMP": str(tmp_path),
    }
    return Runner(files, checkout, job)


def write(checkout: Path, kept: int = 1, scale: str = "1", more: str = "") -> None:
    text = LOSSES.replace("KEPT", str(kept)).replace("SCALE", scale)
    (checkout / "their_package/losses.py").write_text(text + more)


def commit(checkout: Path, **change: Any) -> None:
    write(checkout, **change)
    git(checkout, "commit", "-q", "-a", "-m", "the pull request")


def git(checkout: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, "-C", str(checkout), *arguments], check=True, capture_output=True)
