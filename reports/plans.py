"""The rows of ``python -m benchmarks plan`` to tables."""

import pandas as pd

from reports.tables import level_of, number

LEGEND = (
    "Peak and saved memory are beside the arguments, which `in all` counts. `moved` is what every "
    "operation reads and writes. A time is the least that a limit implies, on one GPU."
)


def render(rows: pd.DataFrame) -> str:
    """A table for each workload, dtype and level, and what could not be simulated.

    Where memory was measured too, they are one table: by how much the plan is off.
    """
    if rows["measured_peak_memory"].notna().any():
        return checked(rows)
    levels = rows.assign(level=rows["impl"].map(level_of))
    cells = levels.groupby(["workload", "dtype", "level"], sort=False)
    return "\n\n".join([*(_planned(cell) for _, cell in cells), LEGEND])


def checked(rows: pd.DataFrame) -> str:
    """The plan against what was measured, in bytes, and the names of what was not simulated."""
    table = rows.dropna(subset="measured_peak_memory")
    shown = table[["impl", "workload", "dtype"]].copy()
    for name, words in (("peak_memory", "peak"), ("saved_memory", "saved")):
        shown[f"{words}, planned"] = table[name].map("{:,.0f}".format)
        shown[f"{words}, measured"] = table[f"measured_{name}"].map("{:,.0f}".format)
        shown[f"{words}, off"] = off(table, name).map("{:+.2%}".format)
    left_out = rows[rows["not_simulated"].notna()].drop_duplicates(["impl", "not_simulated"])
    lines = [f"{one.impl} cannot be simulated: {one.not_simulated}." for one in left_out.itertuples()]
    return "\n\n".join([markdown(shown), *lines])


def off(rows: pd.DataFrame, name: str) -> pd.Series:
    """By what share of the measured bytes the plan is off; 0 where both are 0."""
    measured = rows[f"measured_{name}"].astype(float)
    return (rows[name] - measured) / measured.clip(lower=1)


def _planned(cell: pd.DataFrame) -> str:
    of = cell.iloc[0]
    title = " · ".join([of["level"], of["workload"], of["dtype"], of["device"]])
    size = f"{of['tokens']:,} tokens × {of['hidden']:,} hidden × {of['vocab']:,} vocabulary"
    ranks = f", each of {of['ranks']} ranks" if of["level"] == "sharded" else ""
    lines = [f"### {title}\n", f"{size}{ranks}, {of['gpu']}, torch {of['torch']}\n"]
    planned = cell[cell["not_simulated"].isna()].sort_values("peak_memory", kind="stable")
    if len(planned):
        table = pd.DataFrame(
            {
                "impl": planned["impl"],
                "peak (GiB)": (planned["peak_memory"] / 2**30).map(number),
                "in all (GiB)": (
                    (planned["peak_memory"] + planned["arguments"]) / 2**30
                ).map(number),
                "fits": planned["fits"].map({True: "fits", False: "does not fit"}),
                "saved (GiB)": (planned["saved_memory"] / 2**30).map(number),
                "TFLOP": (planned["flops"] / 1e12).map(number),
                "moved (GB)": (planned["moved"] / 1e9).map(number),
                "sent (GB)": (planned["sent"] / 1e9).map(number),
                "compute (ms)": planned["compute_ms"].map(number),
                "memory (ms)": planned["memory_ms"].map(number),
                "network (ms)": planned["network_ms"].map(number),
            }
        )
        lines.append(markdown(table))
    lines += [
        f"\n{one.impl} cannot be simulated: {one.not_simulated}."
        for one in cell[cell["not_simulated"].notna()].itertuples()
    ]
    return "\n".join(lines)


def markdown(table: pd.DataFrame) -> str:
    right = ["right"] * (table.shape[1] - 1)
    return str(table.to_markdown(index=False, colalign=("left", *right), disable_numparse=True))
