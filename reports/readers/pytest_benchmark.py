"""pytest-benchmark's JSON (``.benchmarks``)."""

from typing import Any

import pandas as pd

from reports.analysis.intervals import median_interval
from reports.readers.schema import whole


def from_pytest_benchmark(content: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for benchmark in content["benchmarks"]:
        samples = tuple(1e3 * seconds for seconds in benchmark["stats"]["data"])
        value, low, high = median_interval(samples)
        rows.append(
            benchmark["extra_info"]
            | {"unit": "ms", "value": value, "ci_low": low, "ci_high": high}
            | {"n": len(samples), "samples": samples}
        )
    return whole(pd.DataFrame(rows), "pytest-benchmark")
