"""Tidy CSVs, which ``python -m benchmarks`` writes."""

import pandas as pd

from reports.readers.schema import COLUMNS, NUMBERS, NotResults, whole


def from_tidy(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    if "hardware" not in rows:  # as in older files
        rows = rows.assign(hardware="")
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise NotResults(f"no tidy CSV: it lacks {', '.join(missing)}")
    rows[NUMBERS] = rows[NUMBERS].apply(pd.to_numeric, errors="coerce")
    # The last row may be half written, if the run was killed. A row with ``n`` and no value is of a
    # loss that gave no number.
    return whole(rows[rows["n"].notna()], source)
