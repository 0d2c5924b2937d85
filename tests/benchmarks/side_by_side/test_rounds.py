"""The CSV that ``python -m benchmarks`` adds rows to."""

from pathlib import Path

import pandas as pd

from benchmarks.options import append_rows
from benchmarks.side_by_side.rows import exact_row

COLUMNS = ["impl", "metric", "value"]


def append(file: Path, *names: str) -> None:
    for row in append_rows(
        file, (exact_row(name, "error", "relative", 0.5) for name in names), COLUMNS
    ):
        assert row["impl"] in file.read_text()  # written before the next is measured


def test_rows_are_added_below_one_header(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    append(file, "logits.first", "logits.second")
    append(file, "logits.third")
    assert pd.read_csv(file)["impl"].tolist() == ["logits.first", "logits.second", "logits.third"]


def test_a_file_of_an_older_version_keeps_its_columns(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("value,impl\n")
    append(file, "logits.first")
    assert file.read_text().splitlines() == ["value,impl", "0.5,logits.first"]


def test_a_run_without_rows_leaves_the_file_empty(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    assert list(append_rows(file, [], COLUMNS)) == []
    assert file.read_text() == ""
