"""``impls`` as it was at a git revision, in a folder of its own."""

import ast
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from benchmarks import ROOT

WORK_TREE = "."
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class UnknownRevision(LookupError):
    """A revision that is not in this clone, or that has no ``impls``."""


def export(revision: str, folder: Path) -> str:
    """Put the ``impls`` of ``revision`` into ``folder``, and return the revision's commit.

    "." is the working tree as it is now. If ``impls`` has uncommitted changes, the commit ends with
    "+". No git worktree is made, and the clone is only read.
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


def sources(folder: Path, name: str) -> dict[Path, str]:
    """The files in ``folder`` that decide what the loss ``name`` does: paths and their code.

    They are its own file, the files of ``impls`` that it imports, and what they import in turn. To
    import ``impls.shared.rows`` is to import ``impls`` and ``impls.shared`` too. A module of a C++
    kernel has the name of the kernel's source.
    """
    found: dict[Path, str] = {}
    modules = [f"impls.{name}"]
    while modules:
        for module in accumulate(modules.pop().split("."), "{}.{}".format):
            path = folder / module.replace(".", "/")
            for file in (path.with_suffix(".py"), path.with_suffix(".cpp"), path / "__init__.py"):
                if file.is_file() and file.relative_to(folder) not in found:
                    tree = _parse(file.read_bytes())
                    found[file.relative_to(folder)] = ast.dump(tree)
                    package = module if file.stem == "__init__" else module.rpartition(".")[0]
                    modules += _imports(tree, package)
    return found


def _parse(source: bytes) -> ast.Module:
    """The code of a module without comments and docstrings, which change nothing that it does."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the process that imports it says so
        return ast.Module([ast.Expr(ast.Constant(source))], [])
    for node in ast.walk(tree):
        if isinstance(node, HAVE_DOCSTRINGS) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """What a module of ``package`` imports from ``impls``: modules, and perhaps names in them."""
    for statement in ast.walk(tree):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            relative = "." * statement.level + (statement.module or "")
            module = importlib.util.resolve_name(relative, package)
            names = [module, *(f"{module}.{alias.name}" for alias in statement.names)]
        yield from (name for name in names if name.partition(".")[0] == "impls")


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("git") is None:
        raise UnknownRevision(
            "git is not installed here: only ., the working tree, can be compared"
        )
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
