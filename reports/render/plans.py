"""Tables of the rows of ``python -m benchmarks plan``."""

from typing import Any

import pandas as pd

from reports.analysis.selection import level_of
from reports.render.tables import number

LEGEND = (
    "Peak and saved memory do not count the arguments; `in all` counts them. `moved` is what all "
    "operations read and write. A time is the least that a limit of the GPU allows, on one GPU."
)


def render(rows: pd.DataFrame) -> str:
    """A table for each workload, dtype and level, and the losses that cannot be simulated.

    If memory was measured too, there is a single table, which compares plan and measurement.
    """
    if rows["measured_peak_memory"].notna().any():
        return checked(rows)
    levels = rows.assign(level=rows["impl"].map(level_of))
    cells = levels.groupby(["workload", "dtype", "level"], sort=False)
    return "\n\n".join([*(_planned(cell) for _, cell in cells), LEGEND])


def checked(rows: pd.DataFrame) -> str:
    """Planned and measured bytes, and the losses that cannot be simulated."""
    table = rows.dropna(subset="measured_peak_memory")
    shown = table[["impl", "workload", "dtype"]].copy()
    for name, words in (("peak_memory", "peak"), ("saved_memory", "saved")):
        shown[f"{words}, planned"] = table[name].map("{:,.0f}".format)
        shown[f"{words}, measured"] = table[f"measured_{name}"].map("{:,.0f}".format)
        shown[f"{words}, off"] = off(table, name).map("{:+.2%}".format)
    left_out = rows[rows["not_simulated"].notna()].drop_duplicates(["impl", "not_simulated"])
    return "\n\n".join([markdown(shown), *map(_reason, left_out.itertuples())])


def off(rows: pd.DataFrame, name: str) -> pd.Series:
    """The error of the plan, as a share of the measured bytes; 0 if both are 0."""
    measured = rows[f"measured_{name}"].astype(float)
    return (rows[name] - measured) / measured.clip(lower=1)


def _planned(cell: pd.DataFrame) -> str:
    of = cell.iloc[0]
    title = " · ".join([of["level"], of["workload"], of["dtype"], of["device"]])
    size = f"{of['tokens']:,} tokens × {of['hidden']:,} hidden × {of['vocab']:,} vocabulary"
    ranks = f", each of {of['ranks']} ranks" if of["level"] == "sharded" else ""
    lines = [f"### {title}\n", f"{size}{ranks}, {of['gpu']}, torch {of['torch']}\n"]
    planned = cell[cell["not_simulated"].isna()].sort_values("peak_memory", kind="stable")
    columns = {
        "peak (GiB)": planned["peak_memory"] / 2**30,
        "in all (GiB)": (planned["peak_memory"] + planned["arguments"]) / 2**30,
        "saved (GiB)": planned["saved_memory"] / 2**30,
        "TFLOP": planned["flops"] / 1e12,
        "moved (GB)": planned["moved"] / 1e9,
        "sent (GB)": planned["sent"] / 1e9,
        "compute (ms)": planned["compute_ms"],
        "memory (ms)": planned["memory_ms"],
        "network (ms)": planned["network_ms"],
    }
    table = pd.DataFrame({name: column.map(number) for name, column in columns.items()})
    table.insert(0, "impl", planned["impl"])
    table.insert(3, "fits", planned["fits"].map({True: "fits", False: "does not fit"}))
    left_out = cell[cell["not_simulated"].notna()]
    lines += [markdown(table)] if len(table) else []
    return "\n".join([*lines, *(f"\n{_reason(one)}" for one in left_out.itertuples())])


def _reason(one: Any) -> str:
    return f"{one.impl} cannot be simulated: {one.not_simulated}."


def markdown(table: pd.DataFrame) -> str:
    right = ["right"] * (table.shape[1] - 1)
    return str(table.to_markdown(index=False, colalign=("left", *right), disable_numparse=True))
