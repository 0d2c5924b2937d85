"""The history that Liger-Kernel publishes: its ``benchmark.csv`` and a column for the commit."""

import pandas as pd

from reports.readers.schema import COLUMNS, NUMBERS, NotResults, whole

RENAMED = {
    "gpu_name": "device",
    "timestamp": "commit_date",
    "kernel_provider": "impl",
    "metric_unit": "unit",
    "y_value_50": "value",
    "y_value_20": "ci_low",
    "y_value_80": "ci_high",
}


def from_liger(rows: pd.DataFrame) -> pd.DataFrame:
    """Tidy rows, whose intervals are from the 20 % quantile to the 80 % quantile."""
    missing = [name for name in (*RENAMED, "commit", "metric_name", "x_value") if name not in rows]
    if missing:
        raise NotResults(f"no history of Liger-Kernel: it lacks {', '.join(missing)}")
    size = rows["x_name"] + "=" + rows["x_value"].astype(str)
    mode = rows["kernel_operation_mode"]
    tidy = rows.rename(columns=RENAMED).assign(
        workload=rows["kernel_name"] + " " + size + " " + rows["extra_benchmark_config_str"],
        metric=mode.where(rows["metric_name"] == "speed", mode + "_" + rows["metric_name"]),
        n=1,
    )
    tidy = tidy.reindex(columns=COLUMNS)
    tidy[NUMBERS] = tidy[NUMBERS].apply(pd.to_numeric, errors="coerce")
    return whole(tidy, "Liger-Kernel")
