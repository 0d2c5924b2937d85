"""Histories: which numbers form a series, and in which order their commits come."""

import functools
import subprocess

import numpy as np
import pandas as pd

from reports.readers.schema import commit_dates

# Numbers that differ in any of these are never in one series.
SERIES_ENVIRONMENT = ["source", "machine", "device", "hardware", "torch", "threads", "allocator"]
QUANTITY = ["workload", "text", "dtype", "metric", "unit"]


def groups(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The histories whose numbers can be compared: one quantity in one environment.

    Shares are left out, as more overlap is no regression. First calls are left out, as the
    compiler's cache decides them. Where there are multiples of the reference, they stand for the
    milliseconds, as a machine changes its speed from commit to commit. So they do for asv's times.
    """
    rows = with_failures(rows)
    rows = rows[(rows["unit"] != "share") & (rows["metric"] != "first_call")]
    rows = rows[~((rows["unit"] == "ms") & ((rows["source"] == "asv") | has_multiple(rows)))]
    found = rows.groupby([*SERIES_ENVIRONMENT, *QUANTITY], dropna=False, sort=False)
    return [group for _, group in found]


def has_multiple(rows: pd.DataFrame) -> pd.Series:
    """For each row, whether its time is there as a multiple of the reference too."""
    cell = [*SERIES_ENVIRONMENT, "workload", "text", "dtype", "metric"]
    named = rows[cell].astype(object).fillna("").astype(str)
    is_multiple = named["metric"].str.endswith("_multiple")
    bare = named[is_multiple].assign(metric=named["metric"].str.removesuffix("_multiple"))
    multiples = pd.MultiIndex.from_frame(bare)
    return pd.Series(pd.MultiIndex.from_frame(named).isin(multiples), index=rows.index)


def with_failures(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` in which a run that failed has a row without a number for each metric it lost."""
    failed = rows["metric"] == "failed"
    if not failed.any():
        return rows
    keys = [*SERIES_ENVIRONMENT, "impl", "workload", "text", "dtype"]
    metrics = rows.loc[~failed, [*keys, "metric", "unit"]].drop_duplicates()
    lost = rows[failed].drop(columns=["metric", "unit"]).merge(metrics, on=keys)
    return pd.concat([rows[~failed], lost.assign(value=np.nan)], ignore_index=True)


def series(group: pd.DataFrame) -> dict[str, pd.Series]:
    """For each implementation of a group: commit to value, oldest first.

    Several values of a commit count as their median. The value is nan at a commit at which the
    implementation was run and gave no number.
    """
    usable = in_order(group[~(group["value"] < 0) & ~np.isinf(group["value"])])
    medians = usable.groupby(["impl", "commit"], sort=False)["value"].median()
    return {
        str(impl): one.droplevel("impl") for impl, one in medians.groupby(level="impl", sort=False)
    }


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Parents before children where this clone has all the commits, else by date of commit.

    Dates alone would be wrong after a rebase. Rows whose date is unknown stay as they are.
    """
    commits = rows["commit"].astype(str).str.rstrip("+")
    place = {commit: n for n, commit in enumerate(subjects())}
    if len(rows) and place and commits.isin(place.keys()).all():
        return rows.iloc[commits.map(place).argsort(kind="stable")]
    dates = commit_dates(rows)
    return rows.iloc[dates.argsort(kind="stable")] if dates.notna().all() else rows


@functools.cache
def subjects() -> dict[str, str]:
    """The subject of each commit of the clone in which this process runs, parents first.

    It is empty outside a clone.
    """
    command = ["git", "log", "--topo-order", "--reverse", "--all", "--no-show-signature"]
    command += ["--format=%H %s"]
    try:
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    lines = (line.partition(" ") for line in listed.stdout.split("\n") if line)
    return {commit: subject for commit, _, subject in lines}
