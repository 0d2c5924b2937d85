"""Tidy rows: the columns that all readers return."""

import pandas as pd

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
# What a row has too: the hash of the workload's text, the samples of a time, and whether the time
# failed its checks. A file may lack them.
EXTRAS = ["text", "samples", "noisy"]


class NotResults(ValueError):
    """The file is not what its name promises. The message says why."""


def whole(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """``rows`` with ``COLUMNS``, ``EXTRAS`` and ``source``. What is missing is empty."""
    rows = rows.reindex(columns=[*COLUMNS, *EXTRAS]).assign(source=source)
    samples = [as_samples(cell) for cell in rows["samples"]]
    noisy = pd.to_numeric(rows["noisy"], errors="coerce").fillna(0).astype(bool)
    rows["text"] = rows["text"].astype(object).fillna("").astype(str)
    return rows.assign(samples=pd.Series(samples, index=rows.index, dtype=object), noisy=noisy)


def as_samples(cell: object) -> tuple[float, ...]:
    """The samples of a time: a tuple already, or the text of a CSV, where spaces separate them."""
    if isinstance(cell, tuple):
        return cell
    try:
        return tuple(float(word) for word in cell.split()) if isinstance(cell, str) else ()
    except ValueError:
        return ()


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with today's names of implementations: older files call a reference a limit."""
    return table.assign(impl=table["impl"].replace(r"\.limit$", ".reference", regex=True))


def commit_dates(rows: pd.DataFrame) -> pd.Series:
    """The date of each row's commit; NaT if the date is unknown."""
    return pd.to_datetime(rows["commit_date"], utc=True, errors="coerce", format="ISO8601")
