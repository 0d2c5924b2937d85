"""The columns of a tidy row, and what every reader gives: a DataFrame of such rows."""

from collections.abc import Sequence
from typing import Any

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
# What a file may have too: the hash of the workload's text, the samples of a time, and whether the
# time failed its checks.
EXTRAS = ["text", "samples", "noisy"]


class NotResults(ValueError):
    """A file that is not what its name and place promise; the message says in what."""


def frame(source: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Tidy rows, with the kind of run that they are from."""
    return whole(pd.DataFrame(rows), source)


def whole(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """``rows`` with all columns: what is missing is empty."""
    rows = rows.reindex(columns=[*COLUMNS, *EXTRAS]).assign(source=source)
    samples = [as_samples(one) for one in rows["samples"]]
    noisy = pd.to_numeric(rows["noisy"], errors="coerce").fillna(0).astype(bool)
    rows["text"] = rows["text"].astype(object).fillna("").astype(str)
    return rows.assign(samples=pd.Series(samples, index=rows.index, dtype=object), noisy=noisy)


def as_samples(cell: object) -> tuple[float, ...]:
    """The samples of a time: a tuple already, or the text of a CSV, with spaces between them."""
    if isinstance(cell, tuple):
        return cell
    try:
        return tuple(float(word) for word in cell.split()) if isinstance(cell, str) else ()
    except ValueError:
        return ()


def commit_dates(rows: pd.DataFrame) -> pd.Series:
    """When each row's commit was made; NaT where that is not known."""
    return pd.to_datetime(rows["commit_date"], utc=True, errors="coerce", format="ISO8601")
