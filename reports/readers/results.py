"""Result files of any kind to one tidy DataFrame, a row a number.

It reads asv's results (``.asv/results``), pytest-benchmark's JSON (``.benchmarks``), tidy CSVs, as
``python -m benchmarks`` writes them, and the history that Liger-Kernel publishes.
"""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.analysis.intervals import median_interval

COLUMNS = [
    "machine",
    "device",
    "hardware",
    "commit",
    "commit_date",
    "torch",
    "threads",
    "allocator",
    "impl",
    "workload",
    "dtype",
    "metric",
    "unit",
    "value",
    "ci_low",
    "ci_high",
    "n",
]
NUMBERS = ["threads", "value", "ci_low", "ci_high", "n"]
TEXTS = [name for name in COLUMNS if name not in NUMBERS]


class NotResults(ValueError):
    """A file that is not what its name and place promise; the message says in what."""


def read(paths: Iterable[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Every row in ``paths``, files or folders; a line for each file passed over and cell failed.

    Beside ``COLUMNS`` there are ``source``, the kind of run: numbers of different runs are not
    mixed; and ``samples``, a tuple of what ``value`` is the median of, empty if that is not known.
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
        return pd.DataFrame(columns=["source", "samples", *COLUMNS]), notes
    rows = pd.concat(frames, ignore_index=True).drop_duplicates()
    return rows.assign(
        **{name: rows[name].astype(object).fillna("").astype(str) for name in TEXTS}
    ), notes


def commit_dates(rows: pd.DataFrame) -> pd.Series:
    """When each row's commit was made; NaT where that is not known."""
    return pd.to_datetime(rows["commit_date"], utc=True, errors="coerce", format="ISO8601")


# asv's own, and what `python -m reports` itself writes of what it has read.
NO_RESULTS = ("machine.json", "benchmarks.json", "tidy.csv", "wide.csv")


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = itertools.chain(path.rglob("*.json"), path.rglob("*.csv"))
            yield from sorted(file for file in found if file.name not in NO_RESULTS)
        else:
            yield path


# What tells the other CSVs that the commands write from those of numbers.
KINDS = {
    "pairs": {"role", "pair", "block"},
    "plan": {"impl", "not_simulated"},
    "gate": {"impl", "property", "outcome"},
}


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
    return [file for file in _files(paths) if kind(file) == wanted]


def _read_file(file: Path) -> tuple[pd.DataFrame, list[str]]:
    if file.suffix == ".csv":
        return _read_csv(file), []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise NotResults(f"damaged JSON ({error})") from error
    try:
        if isinstance(content, dict) and "env_name" in content:
            return _read_asv(file)
        if isinstance(content, dict) and "benchmarks" in content:
            return _read_pytest_benchmark(content), []
    except NotResults:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise NotResults(f"not of this project, or damaged ({error!r})") from error
    raise NotResults("neither asv's nor pytest-benchmark's JSON")


def _frame(source: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, "samples"]).assign(source=source)


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise NotResults(f"damaged CSV ({str(error).strip()})") from error
    if "kernel_provider" in rows:
        return _from_liger(rows)
    if "hardware" not in rows:  # as in files that were begun before it was recorded
        rows["hardware"] = ""
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise NotResults(f"no tidy CSV: it lacks {', '.join(missing)}")
    rows[NUMBERS] = rows[NUMBERS].apply(pd.to_numeric, errors="coerce")
    if "samples" not in rows:  # as in files that were begun before there were any
        rows["samples"] = ""
    rows["samples"] = rows["samples"].map(_samples)
    # The last row of a run that was killed may be half written.
    whole = rows["n"].notna()
    return rows.loc[whole, [*COLUMNS, "samples"]].assign(source=file.name)


def _samples(text: object) -> tuple[float, ...]:
    """The samples in a cell of a CSV, which has spaces between them."""
    try:
        return tuple(float(word) for word in text.split()) if isinstance(text, str) else ()
    except ValueError:
        return ()


LIGER = {
    "gpu_name": "device",
    "timestamp": "commit_date",
    "kernel_provider": "impl",
    "metric_unit": "unit",
    "y_value_50": "value",
    "y_value_20": "ci_low",
    "y_value_80": "ci_high",
}


def _from_liger(rows: pd.DataFrame) -> pd.DataFrame:
    """Liger-Kernel's ``benchmark.csv``, with a column for the commit; quantiles for intervals."""
    missing = [name for name in (*LIGER, "commit", "metric_name", "x_value") if name not in rows]
    if missing:
        raise NotResults(f"no history of Liger-Kernel: it lacks {', '.join(missing)}")
    size = rows["x_name"] + "=" + rows["x_value"].astype(str)
    mode = rows["kernel_operation_mode"]
    tidy = rows.rename(columns=LIGER).assign(
        workload=rows["kernel_name"] + " " + size + " " + rows["extra_benchmark_config_str"],
        metric=mode.where(rows["metric_name"] == "speed", mode + "_" + rows["metric_name"]),
        n=1,
    )
    tidy = tidy.reindex(columns=COLUMNS)
    tidy[NUMBERS] = tidy[NUMBERS].apply(pd.to_numeric, errors="coerce")
    return tidy.assign(source="Liger-Kernel", samples=[()] * len(tidy))


def _read_asv(file: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        from asv.results import Results  # not on every machine that measures
    except ImportError as error:
        raise NotResults("it is asv's, which is not installed") from error
    try:
        results = Results.load(str(file))
    except Exception as error:  # asv raises what it likes for a file it cannot read
        raise NotResults(f"not readable by asv ({error})") from error
    threads = None
    rows, failed = [], []
    environment = {
        "machine": results.params.get("machine"),
        "hardware": results.params.get("cpu"),
        "commit": results.commit_hash,
        "commit_date": pd.Timestamp(results.date, unit="ms", tz="UTC").isoformat(),
        "torch": results.params.get("torch"),
        "allocator": "pinned" if "MALLOC_MMAP_THRESHOLD_" in results.env_vars else "default",
    }
    for key in results.get_all_result_keys():
        params = results.get_result_params(key)
        values = results.get_result_value(key, params)
        samples = results.get_result_samples(key, params)
        if key == "environment.track_threads":
            threads = values[0]
            continue
        _, device, benchmark = key.split(".")
        kind, _, metric = benchmark.partition("_")
        for cell, value, sampled in zip(itertools.product(*params), values, samples, strict=True):
            if value is None:
                failed.append(f"{key}({', '.join(cell)})")
            if value is None or pd.isna(value):
                continue
            impl, workload, dtype = (name.strip("'") for name in cell)
            scale, unit = (1e3, "ms") if kind == "time" else (1, UNITS[metric])
            middle, low, high = median_interval(sampled) if sampled else (value, value, value)
            rows.append(
                environment
                | {"device": device.lower().replace("x", " × "), "impl": impl}
                | {"workload": workload, "dtype": dtype}
                | {"metric": metric, "unit": unit, "n": len(sampled) if sampled else 1}
                | {"value": scale * middle, "ci_low": scale * low, "ci_high": scale * high}
                | {"samples": tuple(scale * sample for sample in sampled or ())}
            )
    return _frame("asv", [row | {"threads": threads} for row in rows]), failed


UNITS = {
    **{"peak_memory": "bytes", "saved_memory": "bytes", "sent": "bytes"},
    **{"error": "relative", "collectives": "count"},
}


def _read_pytest_benchmark(content: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for benchmark in content["benchmarks"]:
        samples = tuple(1e3 * seconds for seconds in benchmark["stats"]["data"])
        value, low, high = median_interval(samples)
        rows.append(
            benchmark["extra_info"]
            | {"unit": "ms", "value": value, "ci_low": low, "ci_high": high}
            | {"n": len(samples), "samples": samples}
        )
    return _frame("pytest-benchmark", rows)
