"""Files and folders: which kind of results a file has, and its rows."""

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.readers.asv import read_asv
from reports.readers.liger import from_liger
from reports.readers.pytest_benchmark import from_pytest_benchmark
from reports.readers.schema import COLUMNS, EXTRAS, TEXTS, NotResults, renamed
from reports.readers.tidy import from_tidy

# asv writes the first two, and `python -m reports` the others. None has new numbers.
NO_RESULTS = ("machine.json", "benchmarks.json", "tidy.csv", "wide.csv")
# The columns by which each kind of CSV is recognised, except tidy CSVs.
KINDS = {
    "pairs": {"role", "pair", "block"},
    "plan": {"impl", "not_simulated"},
    "gate": {"impl", "property", "outcome"},
    "watch": {"package", "what", "verdict"},
}


def read(paths: Iterable[Path]) -> tuple[pd.DataFrame, list[str]]:
    """All rows in ``paths`` (files or folders), and a line for each file that was passed over and
    each benchmark that failed.

    In addition to ``COLUMNS`` a row has ``source``, the kind of run, as numbers of different runs
    are not mixed. It also has ``text``, the hash of the workload's text; ``samples``, a tuple whose
    median is ``value``, empty if the samples are unknown; and ``noisy``, whether the time failed
    its checks.
    """
    frames: list[pd.DataFrame] = []
    notes: list[str] = []
    for file in _files(paths):
        if kind(file) != "numbers":
            continue
        try:
            rows, failed = _read_file(file)
        except (NotResults, OSError, UnicodeDecodeError) as error:
            notes.append(f"passed over {file}: {error}")
            continue
        notes += [f"{file}: {cell} failed" for cell in failed]
        frames.append(rows)
    if not frames:
        return pd.DataFrame(columns=["source", *EXTRAS, *COLUMNS]), notes
    rows = renamed(pd.concat(frames, ignore_index=True)).drop_duplicates()
    return rows.assign(
        **{name: rows[name].astype(object).fillna("").astype(str) for name in TEXTS}
    ), notes


def kind(file: Path) -> str:
    """The kind of results in a file, by its first line.

    "pairs" are raw pairs of ``compare``, a "plan" is of ``plan``, a "watch" is of ``watch``, "gate"
    has outcomes of the gate, and "edge_cases" is of ``edge-cases``. Any other may have "numbers".
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            header = next(csv.reader(lines), []) if file.suffix == ".csv" else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return "numbers"
    for name, columns in KINDS.items():
        if columns <= set(header):
            return name
    return "edge_cases" if header[:1] == ["impl"] and "value" not in header else "numbers"


def of_kind(paths: Iterable[Path], wanted: str) -> list[Path]:
    """The files in ``paths`` that are of the ``wanted`` kind."""
    return [file for file in _files(paths) if kind(file) == wanted]


def read_csv(file: Path, columns: Sequence[str], **options: Any) -> pd.DataFrame:
    """The table in ``file``. Raises ``ValueError`` if it lacks some of ``columns``."""
    table = pd.read_csv(file, **options)
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return renamed(table) if "impl" in table else table


def read_optional_csv(
    file: Path, columns: Sequence[str], notes: list[str], **options: Any
) -> pd.DataFrame | None:
    """The table in ``file``, or None if there is no such file.

    If the file is damaged, ``notes`` and stderr get a line, and the result is None.
    """
    if not file.exists():
        return None
    try:
        return read_csv(file, columns, **options)
    except (OSError, ValueError) as error:
        notes.append(f"passed over {file}: {error}")
        print(notes[-1], file=sys.stderr)
        return None


def read_kind(
    wanted: str,
    paths: Iterable[Path],
    more: Sequence[Path],
    columns: Sequence[str],
    notes: list[str],
    **options: Any,
) -> list[pd.DataFrame]:
    """The tables of the ``wanted`` kind in ``paths``, and those in the files ``more``.

    The column ``file`` of each table names its file. A copy of another table is left out.
    """
    found: dict[Path, pd.DataFrame] = {}
    for file in [*of_kind(paths, wanted), *more]:
        table = read_optional_csv(file, columns, notes, **options)
        if table is not None and not any(table.equals(other) for other in found.values()):
            found[file] = table
    return [table.assign(file=str(file)) for file, table in found.items()]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = itertools.chain(path.rglob("*.json"), path.rglob("*.csv"))
            yield from sorted(file for file in found if file.name not in NO_RESULTS)
        else:
            yield path


def _read_file(file: Path) -> tuple[pd.DataFrame, list[str]]:
    if file.suffix == ".csv":
        return _read_csv(file), []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise NotResults(f"damaged JSON ({error})") from error
    try:
        if isinstance(content, dict) and "env_name" in content:
            return read_asv(file)
        if isinstance(content, dict) and "benchmarks" in content:
            return from_pytest_benchmark(content), []
    except NotResults:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise NotResults(f"not of this project, or damaged ({error!r})") from error
    raise NotResults("neither asv's nor pytest-benchmark's JSON")


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        # As text: a commit can be digits alone, and a loss can be called NA.
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise NotResults(f"damaged CSV ({str(error).strip()})") from error
    return from_liger(rows) if "kernel_provider" in rows else from_tidy(rows, file.name)
