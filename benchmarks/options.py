"""Defines what the commands of ``python -m benchmarks`` share: options, help and refusals."""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import impls
from benchmarks.measure.availability import Unmeasurable, check_options, load
from benchmarks.measure.step import PASSES
from benchmarks.workloads import WORKLOADS, UnknownWorkload, Workload
from impls.loss import LEVELS_OF_ONE_PROCESS

# OSError is not among them: ``benchmarks.__main__`` prints it, except for a closed pipe.
USER_ERRORS = (impls.UnknownImplementation, UnknownWorkload, Unmeasurable)

SKIPPED = 77  # the exit code of what cannot run here; the last line that it prints says why

OPTIONS: dict[str, dict[str, Any]] = {
    "--impl": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "a name that `python -m impls` lists, or a path to a file (repeatable; "
        "without it, all)",
    },
    "--workload": {
        "metavar": "NAME[@TOKENS]",
        "help": f"the input, with another number of tokens after @: {', '.join(WORKLOADS)}; "
        "file:PATH is a recording of benchmarks.capture, config:PATH the shape of a Hugging Face "
        "config",
    },
    "--dtype": {
        "default": "float32",
        "choices": ("float64", "float32", "bfloat16", "float16"),
        "help": "of the loss's arguments",
    },
    "--device": {"default": "cpu", "choices": ("cpu", "cuda"), "help": "where the loss runs"},
    "--pass": {
        "dest": "passes",
        "action": "append",
        "choices": PASSES,
        "help": "what to time (repeatable; without it, all); backward adds forward_backward",
    },
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, and keeps the lines of descriptions and examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help with the default, unless the default is empty: None, False or []."""
        return super()._get_help_string(action) if action.default else action.help


def add(parser: argparse.ArgumentParser, option: str, **changes: Any) -> None:
    """Add ``option`` to the parser, with ``changes`` to its settings in ``OPTIONS``."""
    parser.add_argument(option, **OPTIONS[option] | changes)


def add_pairing(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison of two targets."""
    parser.add_argument("--repo", type=Path, metavar="PATH", help="the clone of git revisions")
    parser.add_argument(
        "--level",
        choices=LEVELS_OF_ONE_PROCESS,
        help="of a MODULE:FUNCTION whose arguments have other names than PyTorch's",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=60.0,
        help="seconds for each time, which is inconclusive after that",
    )


def with_total(passes: Sequence[str] | None) -> list[str]:
    """``passes``, with forward_backward if backward is among them.

    A loss that makes its gradient in forward has a short backward, so backward alone misleads.
    """
    chosen = list(passes or ())
    if "backward" in chosen and "forward_backward" not in chosen:
        chosen.append("forward_backward")
    return chosen


def chosen_losses(
    named: list[str], dtype: str, device: str, among: Sequence[str] = ()
) -> list[impls.Loss]:
    """The losses that are ``named``; if none is, all of ``among`` (or of impls) that run here."""
    if named:
        return [load(name, dtype, device) for name in named]
    return list(available(among or impls.names(), dtype, device))


def available(names: Sequence[str], dtype: str, device: str) -> Iterator[impls.Loss]:
    """The losses that run here. For each other name, print a line that says why."""
    for name in names:
        try:
            yield load(name, dtype, device)
        except Unmeasurable as reason:
            print(f"skipped: {reason}", file=sys.stderr)


def supporting(losses: list[impls.Loss], chosen: Workload, named: bool) -> list[impls.Loss]:
    """The losses that have the options which the workload needs. For each other loss, print why.

    Raises ``Unmeasurable`` for the first that lacks an option, if the losses were ``named``.
    """
    found = []
    for loss in losses:
        try:
            check_options(loss, chosen.needed_options(loss.level))
            found.append(loss)
        except Unmeasurable as reason:
            if named:
                raise
            print(f"skipped: {reason}", file=sys.stderr)
    return found


def open_for_append(path: Path) -> None:
    """Raise ``OSError`` now, not after minutes of measuring, if ``path`` cannot be written to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()


def append_rows(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield each row after it is written to the CSV at ``path``.

    A file that has a header keeps its columns, because an older version may have written it.
    """
    header = None
    if path.is_file():  # not a device, which may be read for ever
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), None)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or columns, extrasaction="ignore")
        for row in rows:
            if not header:  # with the first row: a run that measures nothing leaves no header
                writer.writeheader()
                header = list(columns)
            writer.writerow(row)
            file.flush()
            yield row
