"""``impls`` as it was at a git revision, in a folder of its own."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from benchmarks import ROOT

WORK_TREE = "."


class UnknownRevision(LookupError):
    """A revision that is not in this clone, or that has no ``impls``."""


def export(revision: str, folder: Path) -> str:
    """Put the ``impls`` of ``revision`` into ``folder``; the commit that it is.

    "." is the working tree as it is now, with what is not committed: its commit has a "+" behind
    it if it differs from HEAD. No worktree is made, and the clone is only read.
    """
    if revision == WORK_TREE:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "impls", folder / "impls", ignore=ignore)
        if shutil.which("git") is None or "CROSS_ENTROPY_BENCH_COMMIT" in os.environ:
            return os.environ.get("CROSS_ENTROPY_BENCH_COMMIT", "")
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "impls").stdout.strip()
        return head.stdout.decode().strip() + ("+" if changed else "")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode:
        shallow = _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        hint = "; this clone is shallow: `git fetch --unshallow` gets the rest" if shallow else ""
        raise UnknownRevision(f"no revision {revision!r} in this clone{hint}")
    name = commit.stdout.decode().strip()
    archive = _git("archive", "--format=tar", name, "impls")
    if archive.returncode:
        raise UnknownRevision(f"{revision} has no impls: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return name


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("git") is None:
        raise UnknownRevision(
            "git is not installed here: . alone, the working tree, can be compared"
        )
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
