"""Tidy CSVs, as ``python -m benchmarks`` writes them."""

from pathlib import Path

import pandas as pd

from reports.readers import liger, schema
from reports.readers.schema import COLUMNS, NUMBERS, NotResults


def read(file: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise NotResults(f"damaged CSV ({str(error).strip()})") from error
    if "kernel_provider" in rows:
        return liger.tidied(rows)
    if "hardware" not in rows:  # as in files that were begun before it was recorded
        rows["hardware"] = ""
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise NotResults(f"no tidy CSV: it lacks {', '.join(missing)}")
    rows[NUMBERS] = rows[NUMBERS].apply(pd.to_numeric, errors="coerce")
    # The last row of a run that was killed may be half written.
    complete = rows["n"].notna()
    return schema.whole(rows[complete], file.name)
