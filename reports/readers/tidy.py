"""Tidy CSVs, which ``python -m benchmarks`` writes."""

import pandas as pd

from reports.readers.schema import COLUMNS, NUMBERS, NotResults


def from_tidy(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    # Older files lack these columns.
    rows = rows.assign(**{name: "" for name in ("hardware", "samples") if name not in rows})
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise NotResults(f"no tidy CSV: it lacks {', '.join(missing)}")
    rows[NUMBERS] = rows[NUMBERS].apply(pd.to_numeric, errors="coerce")
    rows["samples"] = rows["samples"].map(_samples)
    # The last row may be half written, if the run was killed.
    whole = rows["value"].notna() & rows["n"].notna()
    return rows.loc[whole, [*COLUMNS, "samples"]].assign(source=source)


def _samples(text: object) -> tuple[float, ...]:
    """The samples in a cell of the CSV, where spaces separate them."""
    try:
        return tuple(float(word) for word in text.split()) if isinstance(text, str) else ()
    except ValueError:
        return ()
