"""Measurements as rows of a CSV."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def exact_row(impl: str, metric: str, unit: str, value: float) -> Row:
    """The row of a quantity that has no noise."""
    cell = {"impl": impl, "metric": metric, "unit": unit}
    return cell | {"value": value, "ci_low": value, "ci_high": value, "n": 1}


def with_interval(row: Row) -> Row:
    """The row of a time with the median of its samples, a 95 % interval, and the samples as text.

    Other rows stay as they are.
    """
    if not isinstance(row.get("samples"), list):
        return row
    from reports.analysis.intervals import median_interval

    value, low, high = median_interval(row["samples"])
    listed = " ".join(f"{value:.5g}" for value in row["samples"])
    interval = {"value": value, "ci_low": low, "ci_high": high, "n": len(row["samples"])}
    return row | interval | {"samples": listed}


def append_rows(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each row after it is written to the CSV at ``path``.

    A file that has a header keeps its columns, because an older version may have written it.
    """
    from reports.readers.schema import COLUMNS

    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        columns = header or [*COLUMNS, "text", "samples", "gpu_state", "noisy"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        for row in rows:
            if not header:  # with the first row: a run that measures nothing leaves no header
                writer.writeheader()
                header = columns
            writer.writerow(row)
            file.flush()
            yield row
