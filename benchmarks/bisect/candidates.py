"""What lies between good and bad: the commits of a clone, or the releases of a package."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.compare.packages import CannotBuild, canonical, has_pip, why
from benchmarks.compare.targets import UnknownRevision, git, resolve


def commits(good: str, bad: str, repo: Path) -> list[str]:
    """The commits from ``good`` to ``bad``, both too, along the first parents of ``bad``.

    So a merge stands for all that it brings. Raises ``UnknownRevision``.
    """
    first, last = (resolve(revision, repo) for revision in (good, bad))
    line = git(repo, "rev-list", "--first-parent", "--reverse", last).stdout.decode().split()
    if first not in line:
        raise UnknownRevision(
            f"{good} is not among the first parents of {bad}: no line of commits joins them"
        )
    return line[line.index(first) :]


def subject(commit: str, repo: Path) -> str:
    """The first line of the commit's message."""
    return git(repo, "show", "--no-patch", "--format=%s", commit).stdout.decode().strip()


def releases(package: str, good: str, bad: str) -> list[str]:
    """``package==version`` of each release from ``good`` to ``bad``, both too.

    Pre-releases count only if ``good`` or ``bad`` is a pre-release. Raises ``CannotBuild``.
    """
    from packaging.version import InvalidVersion, Version

    try:
        ends = first, last = Version(good), Version(bad)
    except InvalidVersion as error:
        raise CannotBuild(f"with --releases, GOOD and BAD are versions: {error}") from error
    pre = any(end.is_prerelease for end in ends)
    known = {Version(text): text for text in published(package, pre)}
    for end in ends:
        if end not in known:
            last_ones = ", ".join(known[one] for one in sorted(known)[-5:])
            raise CannotBuild(f"{package} has no release {end}; the last are {last_ones}")
    between = [known[one] for one in sorted(known) if first <= one <= last]
    if not between:
        raise CannotBuild(f"{good} comes after {bad}")
    return [f"{package}=={version}" for version in between]


def published(package: str, pre: bool = False) -> list[str]:
    """The releases of ``package`` that pip finds for this Python, in any order."""
    if not has_pip():
        raise CannotBuild("pip lists releases, and it is not installed here")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions"]
    options = ["--pre"] if pre else []
    done = subprocess.run(
        [*command, *options, "--", canonical(package)], capture_output=True, text=True
    )
    listed = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if not listed and "No matching distribution" in done.stderr:
        raise CannotBuild(f"no index has a package {package} for this Python")
    if not listed:
        raise CannotBuild(why(done.stderr, [package]))
    return listed[1].split(", ")
