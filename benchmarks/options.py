"""What the commands of ``python -m benchmarks`` are all asked, and what they refuse in one line."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import impls
from benchmarks.measure.availability import Unmeasurable, load
from benchmarks.measure.step import PASSES
from benchmarks.workloads import WORKLOADS, UnknownWorkload

# Without OSError: ``benchmarks.__main__`` says what it is, but of a pipe that `head` has closed.
USER_ERRORS = (impls.UnknownImplementation, UnknownWorkload, Unmeasurable)

OPTIONS: dict[str, dict[str, Any]] = {
    "--impl": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "a name that `python -m impls` lists, or a file's path (repeatable; all, if none)",
    },
    "--workload": {"metavar": "NAME[@TOKENS]", "help": ", ".join(WORKLOADS)},
    "--dtype": {"default": "float32", "choices": ("float64", "float32", "bfloat16", "float16")},
    "--device": {"default": "cpu", "choices": ("cpu", "cuda")},
    "--pass": {"dest": "passes", "action": "append", "choices": PASSES},
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, and keeps the lines of descriptions and examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help with the default, unless the default is empty: None, False or []."""
        return super()._get_help_string(action) if action.default else action.help


def add(parser: argparse.ArgumentParser, option: str, **changes: Any) -> None:
    """Add ``option`` to the parser, with ``changes`` to its settings in ``OPTIONS``."""
    parser.add_argument(option, **OPTIONS[option] | changes)


def chosen_losses(
    named: list[str], dtype: str, device: str, among: Sequence[str] = ()
) -> list[impls.Loss]:
    """Those named, or else all that run here, of those ``among`` which to choose."""
    if named:
        return [load(name, dtype, device) for name in named]
    return list(available(among or impls.names(), dtype, device))


def available(names: Sequence[str], dtype: str, device: str) -> Iterator[impls.Loss]:
    """Every one of ``names`` that runs here; a line for each that does not."""
    for name in names:
        try:
            yield load(name, dtype, device)
        except Unmeasurable as reason:
            print(f"skipped: {reason}", file=sys.stderr)


def open_for_append(path: Path) -> None:
    """Raise ``OSError`` now, not after minutes of measuring, if ``path`` cannot be written to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
