"""Result files of any kind to one tidy DataFrame, a row a number.

It reads asv's results (``.asv/results``), pytest-benchmark's JSON (``.benchmarks``), tidy CSVs, as
``python -m benchmarks`` writes them, and the history that Liger-Kernel publishes.
"""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from reports.readers import asv, pytest_benchmark, tidy
from reports.readers.schema import COLUMNS, EXTRAS, TEXTS, NotResults

# asv's own, and what `python -m reports` itself writes of what it has read.
NO_RESULTS = ("machine.json", "benchmarks.json", "tidy.csv", "wide.csv")

# What tells the other CSVs that the commands write from those of numbers.
KINDS = {
    "pairs": {"role", "pair", "block"},
    "plan": {"impl", "not_simulated"},
    "gate": {"impl", "property", "outcome"},
}


def read(paths: Iterable[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Every row in ``paths``, files or folders; a line for each file passed over and cell failed.

    Besides ``COLUMNS`` there are ``source``, the kind of run, as numbers of different runs are not
    mixed; ``text``, the hash of the workload's text; ``samples``, a tuple of what ``value`` is the
    median of, empty if it is not known; and ``noisy``, whether the time failed its checks.
    """
    frames: list[pd.DataFrame] = []
    notes: list[str] = []
    for file in files(paths):
        if kind(file) != "numbers":
            continue
        try:
            rows, failed = read_file(file)
        except (NotResults, OSError, UnicodeDecodeError) as error:
            notes.append(f"passed over {file}: {error}")
            continue
        notes += [f"{file}: {cell} failed" for cell in failed]
        frames.append(rows)
    if not frames:
        return pd.DataFrame(columns=["source", *EXTRAS, *COLUMNS]), notes
    rows = pd.concat(frames, ignore_index=True).drop_duplicates()
    # A reference was once named limit.
    rows["impl"] = rows["impl"].astype(str).str.replace(r"\.limit$", ".reference", regex=True)
    return rows.assign(
        **{name: rows[name].astype(object).fillna("").astype(str) for name in TEXTS}
    ), notes


def files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = itertools.chain(path.rglob("*.json"), path.rglob("*.csv"))
            yield from sorted(file for file in found if file.name not in NO_RESULTS)
        else:
            yield path


def kind(file: Path) -> str:
    """What is in a file, by its first line: "pairs" of compare's, a "plan", outcomes of the "gate",
    "edge_cases" or, as far as that tells, "numbers"."""
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
    return [file for file in files(paths) if kind(file) == wanted]


def read_file(file: Path) -> tuple[pd.DataFrame, list[str]]:
    if file.suffix == ".csv":
        return tidy.read(file), []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise NotResults(f"damaged JSON ({error})") from error
    try:
        if isinstance(content, dict) and "env_name" in content:
            return asv.read(file)
        if isinstance(content, dict) and "benchmarks" in content:
            return pytest_benchmark.read(content), []
    except NotResults:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise NotResults(f"not of this project, or damaged ({error!r})") from error
    raise NotResults("neither asv's nor pytest-benchmark's JSON")
