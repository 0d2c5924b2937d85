"""Implementations of cross entropy, all with the interface of PyTorch's own.

The filesystem is the registry. The file ``logits/eager.py`` is the implementation "logits.eager":
the folder is its level, and its function has PyTorch's name, ``cross_entropy`` or
``linear_cross_entropy``. ``names()`` lists the implementations, and ``load(name)`` imports one. A
name may fix options, as a call does: "linear.fused(filter_eps=6e-5)".

>>> import impls
>>> cross_entropy = impls.load("logits.eager").fn
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from impls.loss import FUNCTIONS, Loss, Support

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


def load(name: str) -> Loss:
    """Import the implementation ``name``: one of ``names()``, or a path to a Python file.

    Options may follow in brackets: "linear.fused(softcap=30.0)" is linear.fused with this softcap.
    The ``Loss`` keeps the whole name.

    Raises ``UnknownImplementation`` if the name, the file or an option does not exist, or if the
    file at a path has an error of its own. Raises ``Unavailable`` if a package that the
    implementation imports is missing, lacks a name, or fails. An error in a file of this package is
    a bug, and is raised as it is.
    """
    if match := re.fullmatch(r"(.+?\.py|[\w.]+)(\(.*\))", name):
        base, brackets = match.groups()
        loss = load(base)
        fn = functools.partial(loss.fn, **_options(name, brackets, loss.options))
        return replace(loss, name=loss.name + brackets, fn=fn)
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
    level = _level(name, module)
    if is_path:
        name = f"{level}.{name}"
    support = getattr(module, "support", Support())
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    return Loss(name, level, getattr(module, FUNCTIONS[level]), support, summary)


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


def _level(name: str, module: ModuleType) -> str:
    # linear_cross_entropy first: such a file may also import a cross_entropy to call.
    if hasattr(module, FUNCTIONS["linear"]):
        parameters = inspect.signature(module.linear_cross_entropy).parameters
        return "sharded" if "group" in parameters else "linear"
    if hasattr(module, FUNCTIONS["logits"]):
        return "logits"
    raise UnknownImplementation(
        f"{name} defines neither {' nor '.join(dict.fromkeys(FUNCTIONS.values()))}"
    )
