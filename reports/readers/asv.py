"""asv's results, a file a commit and environment."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from reports.analysis.intervals import median_interval
from reports.readers.schema import NotResults, whole

# The units of what is tracked. Times that asv takes itself are in seconds.
UNITS = {
    **dict.fromkeys(("forward", "forward_backward"), "ms"),
    **dict.fromkeys(("forward_multiple", "forward_backward_multiple"), "× reference"),
    **dict.fromkeys(("peak_memory", "saved_memory", "sent"), "bytes"),
    **{"error": "relative", "collectives": "count", "noisy": "count"},
}
# The suites' own, whose losses are measured in turn; and asv's, one cell after the other.
IN_TURN, ONE_BY_ONE = "asv", "asv, one by one"


def read_asv(file: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a file, and the names of the cells that failed: their rows have no value."""
    try:
        from asv.results import Results  # not on every machine that measures
    except ImportError as error:
        raise NotResults("it is asv's, which is not installed") from error
    try:
        results = Results.load(str(file))
    except Exception as error:  # asv raises what it likes for a file it cannot read
        raise NotResults(f"not readable by asv ({error})") from error
    environment = _environment(results)
    keys = [key for key in results.get_all_result_keys() if not key.startswith("environment.")]
    sources: dict[str, list[dict[str, Any]]] = {IN_TURN: [], ONE_BY_ONE: []}
    failed = []
    for key in keys:
        source = ONE_BY_ONE if ".time_" in key else IN_TURN
        for cell, row in _rows(results, key):
            if pd.isna(row["value"]):
                failed.append(f"{key}({', '.join(cell)})")
            sources[source].append(environment | row)
    frames = [whole(pd.DataFrame(rows), source) for source, rows in sources.items()]
    return mark_noisy(pd.concat(frames)), failed


def mark_noisy(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` in which the times of a cell are noisy if the suite counted a noisy time there."""
    is_count = rows["metric"] == "noisy"
    cells = pd.MultiIndex.from_frame(rows[["impl", "workload", "dtype", "device"]])
    marked = cells.isin(cells[is_count & (rows["value"] > 0)])
    is_time = (rows["source"] == IN_TURN) & rows["unit"].isin(["ms", "× reference"])
    return rows.assign(noisy=marked & is_time)[~is_count]


def _environment(results: Any) -> dict[str, Any]:
    """The environment. Of one that it did not build, asv knows only what the suite tracks."""
    tracked = {}
    for name in ("threads", "torch", "pinned_allocator"):
        key = f"environment.track_{name}"
        if key in results.get_all_result_keys():
            tracked[name] = results.get_result_value(key, results.get_result_params(key))[0]
    torch = results.params.get("torch")
    if torch is None and tracked.get("torch"):
        version = int(tracked["torch"])
        torch = f"{version // 10**6}.{version // 1000 % 1000}.{version % 1000}"
    is_pinned = "MALLOC_MMAP_THRESHOLD_" in results.env_vars or tracked.get("pinned_allocator") == 1
    return {
        "machine": results.params.get("machine"),
        "hardware": results.params.get("cpu"),
        "commit": results.commit_hash,
        "commit_date": pd.Timestamp(results.date, unit="ms", tz="UTC").isoformat(),
        "torch": torch,
        "threads": tracked.get("threads"),
        "allocator": "pinned" if is_pinned else "default",
    }


def _rows(results: Any, key: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each cell of a benchmark, and its row. What was skipped is left out."""
    params = results.get_result_params(key)
    values = results.get_result_value(key, params)
    all_samples = results.get_result_samples(key, params)
    _, device, benchmark = key.split(".")
    kind, _, metric = benchmark.partition("_")
    scale, unit = (1e3, "ms") if kind == "time" else (1, UNITS[metric])
    cells = itertools.product(*params)
    for cell, value, samples in zip(cells, values, all_samples, strict=True):
        if value is not None and pd.isna(value):
            continue
        impl, workload, dtype = (name.strip("'") for name in cell)
        given = (value if value is not None else float("nan"),) * 3
        middle, low, high = median_interval(samples) if samples else given
        yield (
            cell,
            {"device": device.lower().replace("x", " × "), "impl": impl}
            | {"workload": workload, "dtype": dtype}
            | {"metric": metric, "unit": unit, "n": len(samples) if samples else 1}
            | {"value": scale * middle, "ci_low": scale * low, "ci_high": scale * high}
            | {"samples": tuple(scale * sample for sample in samples or ())},
        )
