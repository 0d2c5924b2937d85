"""Tidy rows: the columns that all readers return."""

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


class NotResults(ValueError):
    """The file is not what its name promises. The message says why."""


def frame(source: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """``rows`` as a table that has all of ``COLUMNS``, ``samples`` and ``source``."""
    return pd.DataFrame(rows, columns=[*COLUMNS, "samples"]).assign(source=source)


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with today's names of implementations: older files call a reference a limit."""
    return table.assign(impl=table["impl"].replace(r"\.limit$", ".reference", regex=True))


def commit_dates(rows: pd.DataFrame) -> pd.Series:
    """The date of each row's commit; NaT if the date is unknown."""
    return pd.to_datetime(rows["commit_date"], utc=True, errors="coerce", format="ISO8601")
