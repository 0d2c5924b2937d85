"""pytest-benchmark's JSON (``.benchmarks``)."""

from typing import Any

import pandas as pd

from reports.analysis.intervals import median_interval
from reports.readers.schema import whole


def from_pytest_benchmark(content: dict[str, Any]) -> pd.DataFrame:
    """The rows of each loss, and of the builtin loss that took turns with it.

    Different losses are different runs: they did not take turns, so no table compares them.
    """
    runs = []
    for benchmark in content["benchmarks"]:
        cell = dict(benchmark["extra_info"])
        loss, level = cell["impl"], cell["impl"].partition(".")[0]
        own = [1e3 * seconds for seconds in benchmark["stats"]["data"]]
        rows = []
        for impl, samples in {f"{level}.builtin": cell["builtin_ms"], loss: own}.items():
            value, low, high = median_interval(samples)
            rows.append(
                cell
                | {"impl": impl, "unit": "ms", "value": value, "ci_low": low, "ci_high": high}
                | {"n": len(samples), "samples": tuple(samples)}
            )
        runs.append(whole(pd.DataFrame(rows), f"pytest-benchmark of {loss}"))
    return pd.concat(runs)
