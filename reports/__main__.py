"""``python -m reports [PATH ...]``: result files to tidy CSVs and a table."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from reports import tables
from reports.results import COLUMNS, read

DEFAULT_PATHS = [Path(".asv/results"), Path(".benchmarks"), Path("reports/measured")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports", description=__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="result files or folders of them: asv's, pytest-benchmark's, tidy CSVs "
        f"(default: {', '.join(map(str, DEFAULT_PATHS))})",
    )
    parser.add_argument("--out", type=Path, default=Path("reports/out"), help="folder to write to")
    arguments = parser.parse_args(argv)
    for path in arguments.paths:
        if not path.exists():
            parser.error(f"no file or folder {path}")
    rows, notes = read(path for path in arguments.paths or DEFAULT_PATHS if path.exists())
    for note in notes:
        print(note, file=sys.stderr)
    if rows.empty:
        print("no results: `make bench` or `python -m benchmarks` makes some", file=sys.stderr)
        return 1
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows[COLUMNS].to_csv(out / "tidy.csv", index=False)
    tables.wide(rows).to_csv(out / "wide.csv", index=False)
    summary = tables.render(tables.newest(rows))
    semantics = out / "semantics.csv"
    if semantics.exists():
        matrix = pd.read_csv(semantics, keep_default_na=False)
        summary += f"\n\n### What each does in odd cases\n\n{tables.semantics_table(matrix)}"
    (out / "summary.md").write_text(summary + "\n", encoding="utf-8")
    print(summary)
    print(f"\ntidy.csv, wide.csv and summary.md are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
