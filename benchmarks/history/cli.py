"""``python -m benchmarks history``: measures each commit that changed ``impls``, with asv."""

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import impls
from benchmarks import ROOT, options
from benchmarks.compare.sources import sources
from benchmarks.compare.targets import UnknownRevision, export, git, resolve
from benchmarks.history import asv
from benchmarks.measure.availability import check_device, check_timeable
from benchmarks.ranks.pool import needs_ranks

USER_ERRORS = (*options.USER_ERRORS, UnknownRevision)

DESCRIPTION = """\
Measure commits, the oldest first: the time, memory and error of each loss that a commit changed,
next to the reference and PyTorch's loss. Without REVISION, these are all commits that changed
`impls`. What the file has already is not measured again.

asv measures, in the environment that is there. So all commits have the same torch. They also have
today's checks of arguments (`impls/*.py`), which all losses share.
`python -m reports regressions FILE` then says at which commit a number rose."""
EXAMPLES = """\
examples:
  python -m benchmarks history                          may run for hours; Ctrl-C keeps what is done
  python -m benchmarks history HEAD~5 HEAD --device cuda
  python -m benchmarks history --list                   which losses each commit changed"""

# `importlib` and no import statement: a change of the commit's `impls.loss` changes no loss.
FIND_IN_OLDER_LOSS = """

def __getattr__(name):
    import importlib

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("impls.older_loss"), name)
"""


@dataclass(frozen=True)
class Commit:
    """A commit, the losses to measure at it, and its ``impls``."""

    hash: str
    losses: list[str]
    folder: Path


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    if missing := why_not():
        print(missing)
        return options.SKIPPED
    try:
        check_timeable()
        check_device(arguments.device)
        hashes = [resolve(revision) for revision in arguments.revisions] or changing_commits()
        options.open_for_append(arguments.out)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    named = arguments.impl or runnable(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        commits = list(changes(hashes, Path(scratch), bool(arguments.revisions), named))
        if arguments.list:
            for commit in commits:
                print(commit.hash[:10], ", ".join(commit.losses) or "no loss changed")
            return 0
        left = list(unmeasured(commits, asv.measured(arguments.out)))
        return measure(left, arguments, Path(scratch))


def measure(commits: list[Commit], arguments: argparse.Namespace, scratch: Path) -> int:
    """Measure the commits in turn, and add the numbers of each to the file when it is done."""
    failed = 0
    start = time.monotonic()
    for number, commit in enumerate(commits):
        took = (time.monotonic() - start) / number if number else 0
        left = f", about {took * (len(commits) - number) / 60:.0f} min left" if number else ""
        named = ", ".join(commit.losses)
        print(f"{number + 1} of {len(commits)}{left}: {commit.hash[:10]} {named}", flush=True)
        try:
            count = asv.run(
                *(commit.hash, commit.losses, commit.folder, arguments.device),
                *(arguments.out, scratch / "asv"),
            )
            print(f"    {count} rows", flush=True)
        except asv.Failed as error:
            print(f"    failed: {error}", flush=True)
            failed += 1
    print(f"{len(commits) - failed} commits were added to {arguments.out}")
    return int(failed > 0)


def runnable(device: str) -> list[str]:
    """The losses of the working tree that run here and need no ranks."""
    names = [name for name in impls.names() if not needs_ranks(name)]
    return [loss.name for loss in options.available(names, "bfloat16", device)]


def changes(
    hashes: list[str], scratch: Path, measure_all: bool, among: list[str]
) -> Iterator[Commit]:
    """Each commit with the losses ``among`` the named to measure: all, or those that changed.

    A loss changed if it differs from the same loss at the commit before in the list. It is measured
    at the next commit too, as a step between two levels needs two numbers of each.
    """
    before: Mapping[str, object] = {}
    new: list[str] = []
    for hash in hashes:
        folder = scratch / hash
        export(hash, folder)
        use_current_registry(folder / "impls")
        now = {name: sources(folder, name) for name in impls.names(folder / "impls")}
        newer = [name for name in now if measure_all or now[name] != before.get(name)]
        chosen = [name for name in now if name in {*newer, *new} and name in among]
        yield Commit(hash, chosen, folder)
        before, new = now, newer


def use_current_registry(folder: Path) -> None:
    """Put this tree's ``impls/*.py`` in place of a commit's, as today's suites call them.

    They list and check losses, and compute none. The commit's losses may import a name of its
    ``impls.loss`` that today's lacks: it is still found.
    """
    older = folder / "loss.py"
    if older.exists():
        older.rename(folder / "older_loss.py")
    for file in (ROOT / "impls").glob("*.py"):
        shutil.copy(file, folder)
    with (folder / "loss.py").open("a", encoding="utf-8") as loss:
        loss.write(FIND_IN_OLDER_LOSS)


def unmeasured(commits: list[Commit], done: set[tuple[str, str]]) -> Iterator[Commit]:
    """The commits with losses that are not ``done``. PyTorch's own loss of the level joins them.

    If PyTorch's loss moves, the machine moved.
    """
    for commit in commits:
        left = {name for name in commit.losses if (commit.hash, name) not in done}
        builtin = {f"{name.partition('.')[0]}.builtin" for name in left}
        if left:
            yield Commit(commit.hash, sorted(left | builtin), commit.folder)


def changing_commits() -> list[str]:
    """The commits that changed ``impls``, the oldest first. A merge changes nothing itself."""
    order = ("--reverse", "--topo-order", "--no-merges")
    return git(ROOT, "rev-list", *order, "HEAD", "--", "impls").stdout.decode().split()


def why_not() -> str:
    """Why there is no history to measure here; empty if there is."""
    if importlib.util.find_spec("asv") is None:
        return "asv is not installed"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "a history is read from git, and there is no git here"
    return ""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks history",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "revisions",
        nargs="*",
        metavar="REVISION",
        help="measure all losses of these git revisions, in this order",
    )
    options.add(parser, "--impl", help="a loss to measure (repeatable; without it, all)")
    options.add(parser, "--device")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/history.csv"),
        metavar="FILE",
        help="the CSV that numbers are added to",
    )
    parser.add_argument("--list", action="store_true", help="list the commits and measure none")
    return parser.parse_args(argv)
