"""Holds the environment variables that a process needs, from its start, to measure times."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# By default glibc returns large blocks to the system. To fault their pages in again takes longer
# than the loss. With these variables, which it reads when a process starts, glibc keeps the blocks.
PINNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}

# One of two processes with the same code can be 5 % slower, because of the pages that it got. With
# large pages requested, both get large pages (docs/experiments, 0008). Needs glibc 2.35.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# When a process was idle, the system sometimes puts its threads on the same core for tens of
# milliseconds, and a call takes up to twice as long. A bound thread has a core of its own from the
# first call on. The next process uses the same cores, so it waits while a thread of this process
# spins. GNU's OpenMP spins for 6 ms by default, and for half a millisecond with this count.
BOUND_THREADS = {"OMP_PROC_BIND": "true", "GOMP_SPINCOUNT": "20000"}


def first_on_path(*folders: Path) -> dict[str, str]:
    """The PYTHONPATH of a child process: ``folders``, then this process's PYTHONPATH."""
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def allocator(environment: Mapping[str, str] = os.environ) -> str:
    """The CPU allocator of a process with ``environment``: "pinned", "default" or "custom"."""
    settings = {name: value for name, value in environment.items() if name in PINNED_ALLOCATOR}
    if settings == PINNED_ALLOCATOR and sys.platform == "linux":
        return "pinned"
    return "custom" if settings or "LD_PRELOAD" in environment else "default"


def restart(wanted: str, command: list[str]) -> None:
    """Replace this process by ``command`` with the ``wanted`` allocator.

    Return if this process has it, or if it is not available here.
    """
    if wanted == allocator():
        return
    kept = {name: value for name, value in os.environ.items() if name not in PINNED_ALLOCATOR}
    environment = kept | (PINNED_ALLOCATOR if wanted == "pinned" else {})
    if allocator(environment) == wanted:
        os.execve(sys.executable, command, environment)
    print(f"the allocator here is {allocator()}, not {wanted}: recorded so", file=sys.stderr)
