"""Implementations of cross entropy behind one interface, PyTorch's own.

The filesystem is the registry: a file's folder is its level, its name is its name, and the one
function in it that bears PyTorch's name is its body. ``names()`` lists them, ``load(name)`` gives
one to call. A name may fix options, as in a call: ``linear.fused(filter_eps=6e-5)``.

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
    """An implementation that cannot run here: what it imports is missing, too old, or fails."""


class UnknownImplementation(LookupError):
    """A name that no file answers to, or a stranger's file that is none."""


def names(folder: Path = Path(__file__).parent) -> list[str]:
    """Dotted names, ``level.name``, of every implementation under ``folder``. Imports nothing."""
    return sorted(
        f"{file.parent.name}.{file.stem}"
        for level in FUNCTIONS
        for file in (folder / level).glob("[!_]*.py")
    )


def load(name: str) -> Loss:
    """The implementation ``name``: one of ``names()``, or a path to a file of the same shape.

    Either may be followed by options in brackets: ``linear.fused(softcap=30.0)`` is that loss with
    that softcap, under that name. Raises ``UnknownImplementation`` if there is no such name, file
    or option, or if the file at a path fails itself; and ``Unavailable`` if a package that it
    imports is missing, lacks a name or fails. An error of a file of ours is a bug, and stays as it
    is.
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
    except Exception as error:
        if reason := _lacking(error, Path(name)):
            raise Unavailable(reason) from error
        if not is_path:
            raise
        line = next((at for file, at in _frames(error) if file == Path(name).resolve()), None)
        where = name if line is None else f"{name}, line {line}"
        raise UnknownImplementation(f"{where}: {_one_line(error)}") from error
    level = _level(name, module)
    if is_path:
        name = f"{level}.{name}"
    support = getattr(module, "support", Support())
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    return Loss(name, level, getattr(module, FUNCTIONS[level]), support, summary)


def _lacking(error: Exception, file: Path) -> str:
    """Why what a loss imports cannot be had here, or "" if the loss itself is to blame."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    is_theirs = package not in ("", "impls")
    is_missing = isinstance(error, ModuleNotFoundError)
    if is_theirs and is_missing and importlib.util.find_spec(package) is None:
        return f"needs the package {package}, which is not installed"
    source = next((file for file, _ in _frames(error)), Path())
    if source != file.resolve() and not source.is_relative_to(Path(__file__).parent):
        return f"imports what fails here: {_one_line(error)}"
    if is_theirs and not is_missing:
        return f"needs another version of {package}: {_one_line(error)}"
    return ""


def _frames(error: Exception) -> list[tuple[Path, int]]:
    """The files and lines where it was raised, innermost first, without those of importing."""
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno or 0))
    return [
        (Path(file).resolve(), line)
        for file, line in reversed(frames)
        if not file.startswith("<frozen importlib") and file != importlib.__file__
    ]


def _one_line(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, ImportError):
        said = said.partition(" (")[0]  # the rest is a path
    return f"{type(error).__name__}: {said}"


def _options(name: str, brackets: str, known: tuple[str, ...]) -> dict[str, Any]:
    try:
        call = ast.parse(f"f{brackets}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            raise ValueError
        found = {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UnknownImplementation(
            f"{name}: in brackets stand options, as in (softcap=30.0)"
        ) from error
    if unknown := sorted(found.keys() - set(known)):
        raise UnknownImplementation(
            f"{name}: no option {', '.join(unknown)}; there are {', '.join(known)}"
        )
    return found


def _execute(file: Path) -> ModuleType:
    # A name of its own, which torch.compile can look up: a stranger's file may be called torch.py.
    name = "impl_" + re.sub(r"\W", "_", str(file.resolve()))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _level(name: str, module: ModuleType) -> str:
    # A loss of hidden states is looked for first: it may well import a cross_entropy to call.
    if hasattr(module, FUNCTIONS["linear"]):
        parameters = inspect.signature(module.linear_cross_entropy).parameters
        return "sharded" if "group" in parameters else "linear"
    if hasattr(module, FUNCTIONS["logits"]):
        return "logits"
    raise UnknownImplementation(
        f"{name} defines none of {', '.join(dict.fromkeys(FUNCTIONS.values()))}"
    )
