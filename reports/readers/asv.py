"""asv's results (``.asv/results``)."""

import itertools
from pathlib import Path

import pandas as pd

from reports.analysis.intervals import median_interval
from reports.readers.schema import NotResults, frame

# The unit of each metric that asv tracks. Times are in milliseconds.
TRACKED_UNITS = {
    **{"peak_memory": "bytes", "saved_memory": "bytes", "sent": "bytes"},
    **{"error": "relative", "collectives": "count"},
}


def read_asv(file: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows in ``file``, and the name of each benchmark that failed."""
    try:
        from asv.results import Results  # some machines that measure lack asv
    except ImportError as error:
        raise NotResults("asv wrote it, and asv is not installed") from error
    try:
        results = Results.load(str(file))
    except Exception as error:  # asv has no common class for its errors
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
        prefix, _, metric = benchmark.partition("_")
        for cell, value, sampled in zip(itertools.product(*params), values, samples, strict=True):
            if value is None:
                failed.append(f"{key}({', '.join(cell)})")
            if value is None or pd.isna(value):
                continue
            impl, workload, dtype = (name.strip("'") for name in cell)
            scale, unit = (1e3, "ms") if prefix == "time" else (1, TRACKED_UNITS[metric])
            middle, low, high = median_interval(sampled) if sampled else (value, value, value)
            rows.append(
                environment
                | {"device": device.lower().replace("x", " × "), "impl": impl}
                | {"workload": workload, "dtype": dtype}
                | {"metric": metric, "unit": unit, "n": len(sampled) if sampled else 1}
                | {"value": scale * middle, "ci_low": scale * low, "ci_high": scale * high}
                | {"samples": tuple(scale * sample for sample in sampled or ())}
            )
    return frame("asv", [row | {"threads": threads} for row in rows]), failed
