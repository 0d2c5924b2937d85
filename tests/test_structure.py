"""Who may import whom, as CONTRIBUTING says, and how long a module may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import ROOT

# A folder of ``benchmarks`` imports, and runs, folders of the layers before its own.
LAYERS = [
    {"environment"},
    {"gate"},
    {"workloads"},
    {"ranks"},
    {"measure"},
    {"side_by_side", "plan", "compare"},
    {"history", "bisect"},
    {"gpu"},
]
FILES = [file for of in ("benchmarks", "impls", "reports") for file in (ROOT / of).rglob("*.py")]
MODULE = rf"benchmarks\.({'|'.join(set().union(*LAYERS))})(\.\w+)*"
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]
TESTS = [file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("*.py")]


def imported(file: Path) -> Iterator[str]:
    """The modules that ``file`` imports, or runs with ``python -m``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(MODULE, str(node.value)):
            yield str(node.value)


def layer(folder: str) -> int:
    return next((n for n, folders in enumerate(LAYERS) if folder in folders), len(LAYERS))


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name: str) -> None:
    top, folder, *_ = Path(name).parts
    for module in imported(ROOT / name):
        parts = [*module.split("."), ""]
        where = f"{name} imports {module}"
        if top == "impls":
            assert parts[0] not in ("benchmarks", "reports", "tests"), where
        elif top == "reports":
            assert parts[0] not in ("benchmarks", "impls", "tests"), where
            assert (folder, parts[:2]) != ("analysis", ["reports", "render"]), where
        elif parts[0] == "benchmarks" and (ROOT / "benchmarks" / parts[1]).is_dir():
            assert parts[1] == folder or layer(parts[1]) < layer(folder), where


@pytest.mark.parametrize("name", [*NAMES, *TESTS])
def test_a_module_has_at_most_300_lines(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 300
