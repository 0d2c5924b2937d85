"""Stage: runs the asv suites, if asv and git are here."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys

from benchmarks import ROOT
from benchmarks.gpu.run import SKIPPED

BENCHMARKS = {"cuda": r"\.CUDA\.", "cpu": r"^logits\.CPU\."}
PROFILES = {"cuda": "quick", "cpu": "rehearsal"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.history", description=__doc__)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args(argv)
    if missing := why_not():
        print(missing)
        return SKIPPED
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    asv = [sys.executable, "-m", "asv"]
    subprocess.run([*asv, "machine", "--yes"], cwd=ROOT, check=True)
    asv += ["run", "--python=same", "--launch-method", "forkserver", "--set-commit-hash", commit]
    asv += ["--record-samples", "--show-stderr", "--bench", BENCHMARKS[arguments.device]]
    # asv sets the PYTHONPATH of its own processes from this variable alone.
    environment = os.environ | {"ASV_PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    # asv's server imports the suites and forks. What has started CUDA cannot be forked, so torch
    # must ask NVML whether there is a GPU.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    environment.setdefault("BENCHMARK_PROFILE", PROFILES[arguments.device])
    return subprocess.run(asv, cwd=ROOT, env=environment).returncode


def why_not() -> str:
    """Why asv cannot run here; empty if it can."""
    if importlib.util.find_spec("asv") is None:
        return "asv is not installed"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "asv asks git for the commit, and there is no git here"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
