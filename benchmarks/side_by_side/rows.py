"""Measurements as rows of a CSV."""

from typing import Any

Row = dict[str, Any]

# The columns of the CSV beyond those of ``reports.readers.schema``.
MORE_COLUMNS = ["text", "samples", "gpu_state", "noisy"]


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
