"""One commit's numbers: asv runs the suites with the commit's ``impls``, and a CSV keeps them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks import ROOT, options
from benchmarks.environment.description import describe
from benchmarks.environment.variables import PINNED_ALLOCATOR

PROFILES = {"cpu": "history", "cuda": "gpu"}
SETTINGS = {
    "version": 1,
    "project": "cross-entropy-bench",
    "repo": str(ROOT),
    "branches": ["HEAD"],
    "environment_type": "virtualenv",
}


class Failed(RuntimeError):
    """asv gave no numbers. The message has the last line that it printed."""


def run(
    commit: str, losses: Sequence[str], folder: Path, device: str, out: Path, scratch: Path
) -> int:
    """Measure ``losses`` of a commit, whose ``impls`` is in ``folder``, and add them to ``out``.

    Returns the number of rows. asv's own results and its log are in ``scratch``. Raises ``Failed``.
    """
    scratch.mkdir(exist_ok=True)
    config, results, log = (scratch / f"{commit}{end}" for end in (".conf.json", "", ".log"))
    places = {"results_dir": results, "env_dir": scratch / "env", "html_dir": scratch / "html"}
    places["benchmark_dir"] = harness(scratch)
    config.write_text(json.dumps(SETTINGS | {name: str(path) for name, path in places.items()}))
    levels = "|".join(sorted({name.partition(".")[0] for name in losses}))
    suites = rf"^({levels})\.{device.upper()}\.track_"
    with log.open("wb") as file:
        asv(file, "machine", "--yes", "--config", str(config))
        asv(
            file,
            *("run", "--config", str(config), "--python=same", "--set-commit-hash", commit),
            *("--record-samples", "--launch-method", "forkserver", "--show-stderr"),
            *("--bench", suites),
            environment=environment(losses, folder, device),
        )
    rows = [
        row for result in results.rglob(f"{commit[:8]}-*.json") for row in rows_of(result, device)
    ]
    if not rows:
        raise Failed(f"asv gave no numbers; it said: {last_line(log)}")
    return len(list(options.append_rows(out, rows, columns())))


def harness(scratch: Path) -> Path:
    """A copy of ``benchmarks``, so that all commits are measured alike if the user edits it."""
    folder = scratch / "harness"
    for name in ("benchmarks", "impls"):
        if not (folder / name).exists():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    return folder / "benchmarks"


def asv(log: IO[bytes], *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run asv. Its exit code says little: it is 2 where a loss is wrong, and the others count."""
    command = [sys.executable, "-m", "asv", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def environment(losses: Sequence[str], folder: Path, device: str) -> dict[str, str]:
    """The environment of asv: the commit's ``impls`` is found first, and then what is found here.

    asv finds ``benchmarks`` itself, in the working tree.
    """
    here = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(folder), *(path for path in here if path not in ("", str(ROOT)))]
    return {
        "BENCHMARK_PROFILE": PROFILES[device],
        **os.environ,
        **PINNED_ALLOCATOR,
        "BENCHMARK_LOSSES": ",".join(losses),
        "ASV_PYTHONPATH": os.pathsep.join(paths),
        # asv's server imports the suites and forks. What has started CUDA cannot be forked, so
        # torch must ask NVML whether there is a GPU.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def columns() -> list[str]:
    from reports.readers.schema import COLUMNS, EXTRAS

    return [*COLUMNS, *EXTRAS]


def rows_of(result: Path, device: str) -> Iterator[dict[str, Any]]:
    """The rows of a result of asv, with this machine's description in place of asv's."""
    from reports.readers.asv import read_asv

    rows, _ = read_asv(result)
    here = describe(device) | {"allocator": "pinned"}
    for name in ("machine", "device", "hardware", "torch", "threads", "allocator"):
        rows[name] = here[name]
    for row in rows[rows["value"].notna()].to_dict("records"):
        yield row | {"samples": " ".join(f"{sample:.5g}" for sample in row["samples"])}


def measured(file: Path) -> set[tuple[str, str]]:
    """The commits and losses that have numbers in the CSV ``file``."""
    with file.open(newline="", encoding="utf-8") as lines:
        return {(row["commit"], row["impl"]) for row in csv.DictReader(lines)}


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
