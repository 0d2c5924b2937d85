"""Describes where a number is measured: commit, machine, device, threads, allocator, torch."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.environment.variables import BOUND_THREADS, LARGE_PAGES, allocator


def describe(device: str, ranks: int | None = None) -> dict[str, str | int]:
    """The columns of a tidy row that say where it was measured, and by how many ``ranks``."""
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
    """The columns that must be equal in two rows, or their times cannot be compared."""
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
    """The model of the GPU or CPU: different machines of a cluster may share a name."""
    return torch.cuda.get_device_name() if device == "cuda" else _cpu()


def _driver() -> str:
    """NVIDIA's driver, from its kernel module, and the CUDA that torch was built with."""
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
    """HEAD and its date, empty outside a clone. "+" after HEAD: the working tree differs from it.

    CROSS_ENTROPY_BENCH_COMMIT and CROSS_ENTROPY_BENCH_COMMIT_DATE, if set, replace both, for a copy
    of a working tree that lies outside its clone.
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
