"""What a number depends on beside the loss: commit, machine, device, threads, allocator, torch."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.environment.variables import BOUND_THREADS, LARGE_PAGES, allocator


def describe(device: str, ranks: int | None = None) -> dict[str, str | int]:
    """The columns of a tidy row that say where it was measured, by how many ``ranks`` if by any."""
    commit, date = _commit()
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {
        "machine": platform.node(),
        "device": name if ranks is None else f"{name} × {ranks}",
        "hardware": _hardware(device),
        "commit": commit,
        "commit_date": date,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
    }


def comparable(device: str) -> dict[str, str | int]:
    """What must be the same of two times for one to be called the slower."""
    large = os.environ.items() >= LARGE_PAGES.items()
    bound = os.environ.items() >= BOUND_THREADS.items()
    return {
        "machine": platform.node(),
        "hardware": _hardware(device),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()) + (", bound" if bound else ""),
        "allocator": allocator() + (", large pages" if large else ""),
        "torch": torch.__version__,
        "driver": _driver() if device == "cuda" else "",
    }


def _hardware(device: str) -> str:
    """Machines of a cluster may share a name: what they are made of does not."""
    return torch.cuda.get_device_name() if device == "cuda" else _cpu()


def _driver() -> str:
    """NVIDIA's driver, as its kernel module tells, and the CUDA that torch was built with."""
    try:
        first, *_ = Path("/proc/driver/nvidia/version").read_text().splitlines()
    except (OSError, ValueError):
        first = "driver unknown"
    return f"{first}, CUDA {torch.version.cuda}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> tuple[str, str]:
    """HEAD, "+" behind it if the working tree differs, and its date; empty outside a clone.

    CROSS_ENTROPY_BENCH_COMMIT and CROSS_ENTROPY_BENCH_COMMIT_DATE, where they are set, take the
    place of both: a copy of a working tree may lie in another clone, or in none.
    """
    names = ("CROSS_ENTROPY_BENCH_COMMIT", "CROSS_ENTROPY_BENCH_COMMIT_DATE")
    commit, date = (os.environ.get(name, "") for name in names)
    if commit:
        return commit, date

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    with suppress(FileNotFoundError):
        commit, _, date = git("log", "-1", "--format=%H %cI").partition(" ")
        if commit:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return commit + ("+" if changed else ""), date
    return "", ""
