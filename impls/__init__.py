"""Implementations of cross entropy, all with the interface of PyTorch's own.

The filesystem is the registry. The file ``logits/eager.py`` is the implementation "logits.eager":
the folder is its level, and its function has PyTorch's name, ``cross_entropy`` or
``linear_cross_entropy``, or is ``token_logprobs``. ``names()`` lists the implementations, and
``load(name)`` imports one. A name may fix options, as a call does:
"linear.fused(filter_eps=6e-5)". A path to a Python file and "module:function" are names too.

>>> import impls
>>> cross_entropy = impls.load("logits.eager").fn
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import operator
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from impls.loss import FUNCTIONS, LEVELS_OF_ONE_PROCESS, Loss, Support

MODULE_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# The tensors that a loss of each level needs, in PyTorch's order. Linear first: its functions have
# the names of logits too.
TENSORS = {
    "linear": ("input", "linear_weight", "target"),
    "sharded": ("input", "linear_weight", "target"),
    "logits": ("input", "target"),
    "logprobs": ("input", "linear_weight", "target"),
}

__all__ = ["Loss", "Support", "Unavailable", "UnknownImplementation", "load", "names"]


class Unavailable(ImportError):
    """An implementation cannot run here: a package that it needs is missing, too old, or fails."""


class UnknownImplementation(LookupError):
    """No file has this name, or the file at a path is not an implementation."""


def names(folder: Path = Path(__file__).parent) -> list[str]:
    """The name of each implementation under ``folder``, such as "logits.eager". Imports nothing."""
    return sorted(
        f"{file.parent.name}.{file.stem}"
        for level in FUNCTIONS
        for file in (folder / level).glob("[!_]*.py")
    )


def load(name: str, level: str | None = None) -> Loss:
    """Import the implementation ``name``: one of ``names()``, a path to a Python file, or
    "module:function", such as "their_package.losses:fused_ce".

    Options may follow in brackets: "linear.fused(softcap=30.0)" is linear.fused with this softcap.
    The ``Loss`` keeps the whole name.

    The signature of a function tells its level: ``linear_weight`` is at level linear, ``input`` and
    ``target`` alone are at level logits. A function with the name ``token_logprobs`` is at level
    logprobs. Where the arguments have other names, ``level`` tells it, and the tensors are passed
    in PyTorch's order.

    Raises ``UnknownImplementation`` if the name, the file or an option does not exist, or if the
    file at a path has an error of its own. Raises ``Unavailable`` if a package that the
    implementation imports is missing, lacks a name, or fails. An error in a file of this package is
    a bug, and is raised as it is.
    """
    if match := re.fullmatch(r"(.+?\.py|[\w.:]+)(\(.*\))", name):
        base, brackets = match.groups()
        loss = load(base, level)
        fn = functools.partial(loss.fn, **_options(name, brackets, loss.options))
        return replace(loss, name=loss.name + brackets, fn=fn)
    if MODULE_FUNCTION.fullmatch(name):
        return _load_function(name, level)
    is_path = name.endswith(".py")
    if is_path and not Path(name).is_file():
        raise UnknownImplementation(f"no file {name}")
    if not is_path and name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(names())}"
        raise UnknownImplementation(f"no implementation {name!r}{hint}")
    try:
        module = _execute(Path(name)) if is_path else importlib.import_module(f"impls.{name}")
    except Unavailable:
        raise  # the file itself says why
    except Exception as error:
        if reason := _unavailable_reason(error, Path(name)):
            raise Unavailable(reason) from error
        if not is_path:
            raise
        file = Path(name).resolve()
        line = next((line for source, line in _frames(error) if source == file), None)
        where = name if line is None else f"{name}, line {line}"
        raise UnknownImplementation(f"{where}: {_one_line(error)}") from error
    found = _level(name, module)
    if level not in (None, found):
        raise UnknownImplementation(f"{name} is at level {found}, not {level}")
    if is_path:
        name = f"{found}.{name}"
    support = getattr(module, "support", Support())
    return Loss(name, found, getattr(module, FUNCTIONS[found]), support, _first_line(module))


def _load_function(name: str, level: str | None) -> Loss:
    """The ``Loss`` of "module:function"."""
    module_name, _, attributes = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UnknownImplementation(f"{name}: there is no module {missing}") from error
        if missing and importlib.util.find_spec(missing.partition(".")[0]) is None:
            raise Unavailable(f"needs the package {missing}, which is not installed") from error
        where = next((f", {file.name} line {line}" for file, line in _frames(error)), "")
        raise UnknownImplementation(f"{name}{where}: {_one_line(error)}") from error
    try:
        function = operator.attrgetter(attributes)(module)
    except AttributeError as error:
        near = difflib.get_close_matches(attributes, dir(module), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UnknownImplementation(f"{module_name} has no {attributes}{hint}") from error
    if not callable(function):
        raise UnknownImplementation(f"{name} is no function")
    level, function = _at_level(name, function, level)
    support = getattr(module, "support", None)
    support = support if isinstance(support, Support) else Support()
    return Loss(f"{level}.{name}", level, function, support, _first_line(function))


def _at_level(
    name: str, function: Callable[..., Any], level: str | None
) -> tuple[str, Callable[..., Any]]:
    """The level of ``function``, and a function with that level's names of the tensors."""
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # a function of C has no signature
        parameters = inspect.signature(function).parameters
    tensors = {level: TENSORS[level]} if level else TENSORS
    for of, needed in tensors.items():
        if parameters.keys() >= set(needed):
            is_linear = level is None and of == "linear"
            return (_linear_level(function) if is_linear else of), function
    if level is None:
        levels = " or ".join(LEVELS_OF_ONE_PROCESS)
        raise UnknownImplementation(
            f"{name}({', '.join(parameters)}) does not tell its level: --level {levels}"
        )
    order = TENSORS[level]

    @functools.wraps(function)
    def in_order(*given: Any, **options: Any) -> Any:
        named = (options.pop(tensor) for tensor in order[len(given) :])
        return function(*given, *named, **options)

    theirs = [one for one in parameters.values() if one.default is not one.empty]
    in_order.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(tensor, inspect.Parameter.POSITIONAL_OR_KEYWORD) for tensor in order]
        + [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in theirs]
    )
    return level, in_order


def _first_line(documented: object) -> str:
    return (getattr(documented, "__doc__", None) or "").strip().partition("\n")[0]


def _unavailable_reason(error: Exception, file: Path) -> str:
    """Why a package that ``file`` imports is unavailable, or "" if the error is in the file."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    is_foreign = package not in ("", "impls")
    is_missing = isinstance(error, ModuleNotFoundError)
    if is_foreign and is_missing and importlib.util.find_spec(package) is None:
        return f"needs the package {package}, which is not installed"
    source = next((file for file, _ in _frames(error)), Path())
    if source != file.resolve() and not source.is_relative_to(Path(__file__).parent):
        return f"needs a package that fails here: {_one_line(error)}"
    if is_foreign and not is_missing:
        return f"needs another version of {package}: {_one_line(error)}"
    return ""


def _frames(error: Exception) -> list[tuple[Path, int]]:
    """The traceback's files and lines, innermost first, without those of the import system."""
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno or 0))
    return [
        (Path(file).resolve(), line)
        for file, line in reversed(frames)
        if not file.startswith("<frozen importlib") and file != importlib.__file__
    ]


def _one_line(error: Exception) -> str:
    message = str(error).strip().partition("\n")[0]
    if isinstance(error, ImportError):
        message = message.partition(" (")[0]  # the rest is a path
    return f"{type(error).__name__}: {message}"


def _options(name: str, brackets: str, known: tuple[str, ...]) -> dict[str, Any]:
    try:
        call = ast.parse(f"f{brackets}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            raise ValueError
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UnknownImplementation(
            f"{name}: only options may be in the brackets, as in (softcap=30.0)"
        ) from error
    if unknown := sorted(options.keys() - set(known)):
        raise UnknownImplementation(
            f"{name}: no option {', '.join(unknown)}; there are {', '.join(known)}"
        )
    return options


def _execute(file: Path) -> ModuleType:
    if depth := _depth(file):
        return _import_in_package(file.resolve(), depth)
    # torch.compile looks a module up by name. A user's file may be called torch.py, so its module
    # has a name of its own.
    name = "impl_" + re.sub(r"\W", "_", str(file.resolve()))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _depth(file: Path) -> int:
    """How many folders above ``file`` its relative imports need, and then its package; else 0."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # its import says so
        return 0
    relative = (node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    depth = max(relative, default=0)
    while depth and (file.resolve().parents[depth] / "__init__.py").is_file():
        depth += 1
    return depth


def _import_in_package(file: Path, depth: int) -> ModuleType:
    """Import a file as a module of its package, whose parent folder joins the path."""
    root = file.parents[depth]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(file.relative_to(root).with_suffix("").parts)
    module = importlib.import_module(name)
    if module.__file__ is None or Path(module.__file__).resolve() != file:
        raise ImportError(f"{name} is another file here: {module.__file__}")
    return module


def _level(name: str, module: ModuleType) -> str:
    # cross_entropy last: a file of another level may import it to call.
    for level in ("logprobs", "linear", "logits"):
        if hasattr(module, FUNCTIONS[level]):
            function = getattr(module, FUNCTIONS[level])
            return _linear_level(function) if level == "linear" else level
    raise UnknownImplementation(
        f"{name} defines neither {' nor '.join(dict.fromkeys(FUNCTIONS.values()))}"
    )


def _linear_level(function: Callable[..., Any]) -> str:
    """The level of a function that takes hidden states."""
    if getattr(function, "__name__", "") == FUNCTIONS["logprobs"]:
        return "logprobs"
    return "sharded" if "group" in inspect.signature(function).parameters else "linear"
