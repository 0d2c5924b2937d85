"""Runs a stage as a child process within a time limit, and reports its result."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu.stages import Stage
from benchmarks.options import SKIPPED

GRACE = 15.0  # seconds that an interrupted stage has to write its results so far


@dataclass(frozen=True)
class Outcome:
    result: str  # "passed", "failed", "out of time", "skipped" or "interrupted"
    reason: str = ""
    seconds: float = 0.0
    log: Path | None = None


def run(stage: Stage, log: Path, limit: float, environment: Mapping[str, str]) -> Outcome:
    """Run ``stage`` for at most ``limit`` seconds. Its output goes to the file ``log``.

    At the limit, and on Ctrl-C, the stage gets the signal of Ctrl-C. Most stages then write their
    results so far.
    """
    before = size(stage.result)
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # so that only this process gets Ctrl-C, and passes it on
        )
    interrupted, late = False, False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        late = True
    except KeyboardInterrupt:
        interrupted = True
    finally:
        with suppress(KeyboardInterrupt):
            stop(process)
    seconds = time.monotonic() - start
    if interrupted:
        return Outcome("interrupted", "", seconds, log)
    if late:
        return Outcome("out of time", f"after {limit:.0f} s", seconds, log)
    said = last_line(log)
    if process.returncode == SKIPPED:
        return Outcome("skipped", said, seconds, log)
    if process.returncode:
        return Outcome("failed", f"(exit {process.returncode}): {said}", seconds, log)
    if stage.result is not None and size(stage.result) == before:
        return Outcome("failed", f"(no results): {said}", seconds, log)
    return Outcome("passed", f"in {seconds:.0f} s", seconds, log)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and all processes that it started."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def size(file: Path | None) -> tuple[int, float] | None:
    """The bytes and the time of ``file``, which change when it is written; None without a file."""
    if file is None or not file.exists():
        return None
    status = file.stat()
    return status.st_size, status.st_mtime


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
