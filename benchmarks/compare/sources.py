"""Which losses a source tree has, and which files decide what a loss does."""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

SUFFIXES = (".py", ".cpp", ".cu", ".cuh")  # of a module, and of a kernel that the module compiles
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LOSS = re.compile(r"(?!_).*(cross_entropy|loss|(^|_)ce(_|$))")
ARGUMENTS = {"input", "target"}
NOT_A_PACKAGE = re.compile(
    r"\.|_*(tests?|benchmarks?|examples?|docs?|build|dist|node_modules|venv)$"
)


def sources(
    folder: Path, name: str, others: Sequence[Path] = (), packages: Mapping[str, str] = {}
) -> dict[Path, str]:
    """The files in ``folder`` that decide what the loss ``name`` does: paths and their code.

    They are its own file, the files that it imports, and what they import in turn. To import
    ``impls.shared.rows`` is to import ``impls`` and ``impls.shared`` too. A module of a C++ kernel
    has the name of the kernel's source. What ``folder`` lacks is looked for in ``others``. Of the
    modules that ``packages`` names, the version stands for the files.
    """
    found: dict[Path, str] = {}
    modules = [name.partition(":")[0] if ":" in name else f"impls.{name}"]
    while modules:
        wanted = modules.pop()
        if (top := wanted.partition(".")[0]) in packages:
            found[Path(top)] = packages[top]
            continue
        for module in accumulate(wanted.split("."), "{}.{}".format):
            for file, root in _files(module, (folder, *others)):
                if file.relative_to(root) not in found:
                    package = module if file.stem == "__init__" else module.rpartition(".")[0]
                    found[file.relative_to(root)], imported = _code(file.read_bytes(), package)
                    modules += imported
    return found


def functions(root: Path) -> list[str]:
    """Functions below ``root`` that look like losses, as "module:function". Imports nothing.

    Their name says loss, cross_entropy or ce, and they take ``input`` and ``target``.
    """
    found = []
    for file in sorted(root.rglob("*.py")):
        *packages, _ = parts = file.relative_to(root).with_suffix("").parts
        if any(map(NOT_A_PACKAGE.match, parts)) or (packages and packages[0] in ("src", "impls")):
            continue
        module = ".".join(packages if parts[-1] == "__init__" else parts)
        for node in _parse(file.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and LOSS.match(node.name):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if module and {one.arg for one in arguments} >= ARGUMENTS:
                    found.append(f"{module}:{node.name}")
    return found


def _files(module: str, roots: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The files of a module in the first of the ``roots`` that has it, each with its root."""
    for root in roots:
        path = root / module.replace(".", "/")
        files = [path.with_suffix(suffix) for suffix in SUFFIXES] + [path / "__init__.py"]
        if there := [(file, root) for file in files if file.is_file()]:
            return there
    return []


@functools.cache  # many losses import the same files, and the two targets share most files
def _code(source: bytes, package: str) -> tuple[str, list[str]]:
    """The code of a module of ``package``, and what it imports."""
    tree = _parse(source)
    return ast.dump(tree), list(_imports(tree, package))


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
    """What a module of ``package`` imports: modules, and perhaps names in them."""
    for statement in ast.walk(tree):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            relative = "." * statement.level + (statement.module or "")
            try:
                module = importlib.util.resolve_name(relative, package)
            except ImportError:  # beyond the top package: the process that imports it says so
                continue
            names = [module, *(f"{module}.{alias.name}" for alias in statement.names)]
        yield from names
