"""What the user compares: a git revision, packages, a folder, a repository at a revision.

A target becomes folders that are put in front of the path. The first has ``impls``.
"""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import impls
from benchmarks import ROOT
from benchmarks.compare import packages
from benchmarks.compare.sources import functions, sources

WORK_TREE = "."


class UnknownRevision(LookupError):
    """A target that does not exist, or that lacks what is compared."""


@dataclass(frozen=True)
class Target:
    """One side of a comparison."""

    name: str  # as the user wrote it
    commit: str  # "" if there is none; "+" at its end says that the files differ from it
    folder: Path  # has ``impls``
    here: Path  # the folder that relative paths of losses start from
    roots: tuple[Path, ...] = ()  # further source trees for the path
    package_set: packages.PackageSet | None = None
    asked: tuple[str, ...] = ()  # the packages, if it is packages

    @property
    def path(self) -> list[str]:
        """The folders to put in front of the path."""
        folders = [self.folder, *self.roots]
        if self.package_set is not None:
            folders.append(self.package_set.folder)
        return [str(folder) for folder in folders]

    def sources(self, name: str) -> Mapping[Path, str]:
        """What decides what the loss ``name`` does."""
        modules = self.package_set.modules if self.package_set is not None else {}
        return sources(self.folder, name, self.roots, modules)

    def losses(self) -> list[str]:
        """The losses of its ``impls``."""
        return impls.names(self.folder / "impls")

    def functions(self) -> list[str]:
        """The functions of its source trees, or else of its packages, that look like losses."""
        roots = self.roots
        if not roots and self.package_set is not None and "torch" not in self.package_set.modules:
            roots = (self.package_set.folder,)
        return [name for root in roots for name in functions(root)]

    def label(self) -> str:
        if not self.commit:
            return self.name
        return f"{self.name} ({self.commit[:10]}{'+' if self.commit.endswith('+') else ''})"


def open_targets(
    names: Mapping[str, str], folder: Path, repo: Path = ROOT, whole: bool = False
) -> dict[str, Target]:
    """The target of each role, with its files in ``folder``.

    ``whole``: more than ``impls`` is compared. Raises ``UnknownRevision`` or ``CannotBuild``.
    """
    targets = {role: open_target(name, folder / role, repo, whole) for role, name in names.items()}
    if is_same(*targets.values()):
        raise UnknownRevision(
            f"{' and '.join(names.values())} are the same packages: there is nothing to compare"
        )
    for target in targets.values():
        check_torch(target)
    return targets


def is_same(base: Target, head: Target) -> bool:
    """Whether packages are compared that are the same on both sides."""
    others = [target for target in (base, head) if not target.asked]
    of_work_tree = all(target.name == WORK_TREE and not target.roots for target in others)
    return len(others) < 2 and of_work_tree and base.package_set == head.package_set


def changed(base: Target, head: Target) -> list[str]:
    """The losses of both targets that differ: their own file, an imported file or a package."""

    def differ(of_base: list[str], of_head: list[str]) -> list[str]:
        both = [name for name in of_head if name in of_base]
        return [name for name in both if base.sources(name) != head.sources(name)]

    found = differ(base.losses(), head.losses())
    if base.roots or head.roots or not found:
        found += differ(base.functions(), head.functions())
    return found


def unpaired(base: Target, head: Target) -> Iterator[tuple[Target, str]]:
    """The losses that only one target has, each with the target."""
    both = [
        (of, {*of.losses(), *(of.functions() if base.roots and head.roots else [])})
        for of in (base, head)
    ]
    for (of, has), (_, other_has) in (both, both[::-1]):
        yield from ((of, name) for name in sorted(has - other_has))


def what_torch_changes(
    targets: Mapping[str, Target], found: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """What differs between two environments if torch is compared: both torches, and both CUDAs."""
    base, head = found["base"], found["head"]
    if not any(map(asks_for_torch, targets.values())) or base["torch"] == head["torch"]:
        return {}
    joined = {"torch": f"{base['torch']} → {head['torch']}"}
    drivers = dict.fromkeys((base["driver"], head["driver"]))
    if len({driver.partition(", CUDA")[0] for driver in drivers}) == 1:
        joined["driver"] = " → ".join(drivers)
    return joined


def differences(base: Target, head: Target) -> list[str]:
    """The packages whose version differs, each as "name 1.0 → 1.1"."""
    sets = [of.package_set.versions if of.package_set is not None else {} for of in (base, head)]
    lines = []
    for name in sorted({*sets[0], *sets[1]}):
        of_base, of_head = (versions.get(name) or packages.installed(name) for versions in sets)
        if of_base != of_head:
            lines.append(f"{name} {of_base} → {of_head}")
    return lines


def is_foreign(name: str) -> bool:
    """Whether a loss is named by a path or as "module:function", not by its name in ``impls``."""
    base = name.partition("(")[0]
    return base.endswith(".py") or ":" in base


def level_in(name: str) -> str:
    """The level that a name of ``impls`` begins with."""
    return name.partition(".")[0]


def relative_to_repo(name: str, repo: Path) -> str:
    """A loss's name, in which the path of a file in ``repo`` is relative to ``repo``."""
    base, bracket, options = name.partition("(")
    path = Path(base).resolve()
    if not base.endswith(".py") or not path.is_file():
        return name
    inside = path.relative_to(repo) if path.is_relative_to(repo) else path
    return f"{inside}{bracket}{options}"


def open_repo(path: Path) -> Path:
    """The folder at the top of the clone at ``path``."""
    top = git(path, "rev-parse", "--show-toplevel")
    if top.returncode:
        raise UnknownRevision(f"{path} is no git repository")
    return Path(os.fsdecode(top.stdout).rstrip("\n"))


def asks_for_torch(target: Target) -> bool:
    return any(re.match(r"torch(\[.*\])?==", one) for one in target.asked)


def check_torch(target: Target) -> None:
    """Refuse another torch that nobody asked for."""
    torch = target.package_set and target.package_set.versions.get("torch")
    if torch and not asks_for_torch(target):
        asked = ",".join(target.asked)
        raise UnknownRevision(
            f"{target.name} needs torch {torch}, and another torch is compared only if it is asked "
            f"for: {asked},torch=={torch}"
        )


def check_module(target: Target, name: str) -> None:
    """Refuse a module that a source tree lacks: an installed copy would be measured instead."""
    if target.roots and ":" in name and not target.sources(name):
        raise UnknownRevision(f"{target.name} has no file of the module {name.partition(':')[0]}")


def open_target(name: str, folder: Path, repo: Path, whole: bool) -> Target:
    if name.startswith("git+") or "==" in name:
        asked = tuple(part.strip() for part in name.split(","))
        for one in asked:
            if not one.startswith("git+") and not packages.PIN.fullmatch(one):
                raise UnknownRevision(f"{one!r} is no package: write NAME==VERSION")
        found = packages.package_set(asked)
        export(WORK_TREE, folder)
        return Target(name, "", folder, repo, package_set=found, asked=asked)
    place = Path(name).expanduser()
    is_path = name != WORK_TREE and re.match(r"[.~/]", name)
    if is_path and not place.is_dir():
        raise UnknownRevision(f"no folder {name}")
    if is_path or (place.is_dir() and name != WORK_TREE and not is_revision(name, repo)):
        return source_tree(name, place.resolve(), WORK_TREE, folder)
    if whole or repo != ROOT:
        return source_tree(name, repo, name, folder)
    return Target(name, export(name, folder), folder, folder)


def source_tree(name: str, place: Path, revision: str, folder: Path) -> Target:
    """The target of all files of the clone or folder ``place`` at ``revision``."""
    tree = folder.with_name(f"{folder.name}-tree")
    if revision == WORK_TREE and not is_clone(place):
        shutil.copytree(place, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*venv"))
        commit = ""
    else:
        commit = export(revision, tree, place, "")
    if (tree / "impls" / "loss.py").is_file():  # a clone of this repository
        return Target(name, commit, tree, tree)
    export(WORK_TREE, folder)
    roots = tuple(root for root in (tree / "src", tree) if root.is_dir())
    return Target(name, commit, folder, tree, roots)


def export(revision: str, folder: Path, repo: Path = ROOT, part: str = "impls") -> str:
    """Put ``part`` of ``revision`` into ``folder``, and return the revision's commit.

    "." is the working tree as it is now. If it has uncommitted changes, the commit ends with "+".
    No git worktree is made, and the clone is only read.
    """
    if revision == WORK_TREE:
        copy_work_tree(folder, repo, part)
        if shutil.which("git") is None or "CROSS_ENTROPY_BENCH_COMMIT" in os.environ:
            return os.environ.get("CROSS_ENTROPY_BENCH_COMMIT", "")
        head = git(repo, "rev-parse", "HEAD")
        changed = git(repo, "status", "--porcelain", "--", part or ".").stdout.strip()
        return head.stdout.decode().strip() + ("+" if changed else "")
    name = resolve(revision, repo)
    archive = git(repo, "archive", "--format=tar", name, *filter(None, [part]))
    if archive.returncode:
        raise UnknownRevision(f"{revision} has no {part}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return name


def resolve(revision: str, repo: Path = ROOT) -> str:
    """The commit of ``revision``. Raises ``UnknownRevision``."""
    commit = git(repo, *VERIFY, f"{revision}^{{commit}}")
    if commit.returncode:
        shallow = git(repo, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        hint = "; this clone is shallow: `git fetch --unshallow` gets the rest" if shallow else ""
        where = "this clone" if repo == ROOT else str(repo)
        raise UnknownRevision(f"no revision {revision!r} in {where}{hint}")
    return commit.stdout.decode().strip()


VERIFY = ("rev-parse", "--verify", "--quiet", "--end-of-options")


def is_revision(name: str, repo: Path) -> bool:
    return git(repo, *VERIFY, f"{name}^{{commit}}").returncode == 0


def is_clone(place: Path) -> bool:
    return shutil.which("git") is not None and not git(place, "rev-parse", "HEAD").returncode


def copy_work_tree(folder: Path, repo: Path, part: str) -> None:
    """Copy ``part`` of the working tree; all of it: what git does not ignore."""
    if part:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repo / part, folder / part, ignore=ignore)
        return
    folder.mkdir(parents=True)
    for file in _files(repo):
        if (repo / file).is_file():  # not what was deleted, and no submodule
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / file, folder / file)


def _files(repo: Path) -> Iterator[str]:
    listed = git(repo, "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    yield from filter(None, os.fsdecode(listed).split("\0"))


def git(repo: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("git") is None:
        raise UnknownRevision(
            "git is not installed here: only ., the working tree, can be compared"
        )
    return subprocess.run(["git", "-C", str(repo), *arguments], capture_output=True)
