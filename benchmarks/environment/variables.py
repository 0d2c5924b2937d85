"""The environment variables with which a process measures, read when it starts."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# glibc gives large blocks back to the system, and faulting their pages in anew costs more than the
# loss does. With these, read when a process starts, it keeps them.
PINNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}


# Of two processes with the same code one can be 5 % the slower, by the pages it happened to get:
# with large ones asked for, both get them (docs/experiments, 0008). Needs glibc 2.35.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# A process that was idle finds its threads on one core now and then, for tens of milliseconds in
# which a call takes up to twice as long. Bound, each has a core from the first call on. It is also
# that of the next process, which waits as long as a thread of this one's spins there: for GNU's
# OpenMP, 6 ms unless it is told otherwise, and so half a millisecond.
BOUND_THREADS = {"OMP_PROC_BIND": "true", "GOMP_SPINCOUNT": "20000"}


def first_on_path(folder: Path) -> dict[str, str]:
    """``folder`` before all else on the path of a Python process, whose own path is kept."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def allocator(environment: Mapping[str, str] = os.environ) -> str:
    """What serves CPU memory to a process of ``environment``: "pinned", "default" or "custom"."""
    found = {name: value for name, value in environment.items() if name in PINNED_ALLOCATOR}
    if found == PINNED_ALLOCATOR and sys.platform == "linux":
        return "pinned"
    return "custom" if found or "LD_PRELOAD" in environment else "default"
