"""Result files to tidy CSVs, a table and a page. Other reports have a first word: pick, verdicts,
calibration, regressions.
"""

import argparse
import platform
import re
import signal
import sys
from pathlib import Path

import pandas as pd

from reports.analysis import calibration, selection, verdicts
from reports.analysis.change_points import regressions
from reports.analysis.pick import NoPick, pick
from reports.analysis.series import QUANTITY
from reports.analysis.series import SERIES_ENVIRONMENT as ENVIRONMENT
from reports.commands import import_line
from reports.readers.files import of_kind, read
from reports.readers.schema import COLUMNS
from reports.render import page, tables

DEFAULT_PATHS = [Path(".asv/results"), Path(".benchmarks"), Path("reports/measured")]


def main(argv: list[str]) -> int:
    commands = {
        "pick": pick_loss,
        "regressions": list_regressions,
        "verdicts": list_verdicts,
        "calibration": show_calibration,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(prog="python -m reports", description=__doc__)
    add_paths(parser)
    parser.add_argument("--out", type=Path, default=Path("reports/out"), help="folder to write to")
    parser.add_argument(
        "--all", action="store_true", help="print the tables of all machines, not of this one alone"
    )
    arguments = parser.parse_args(argv)
    rows, notes = read_all(parser, arguments.paths)
    if rows.empty:
        return 1
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows[COLUMNS].to_csv(out / "tidy.csv", index=False)
    tables.wide(rows).to_csv(out / "wide.csv", index=False)
    summary = tables.render(selection.newest(rows))
    paths = existing(arguments.paths)
    edge_cases = merged(
        tables_of(
            "edge_cases", paths, out / "edge_cases.csv", ["impl"], notes, keep_default_na=False
        )
    )
    if edge_cases is not None:
        summary += f"\n\n### What each does in edge cases\n\n{tables.edge_case_table(edge_cases)}"
    (out / "summary.md").write_text(summary + "\n", encoding="utf-8")
    runs = tables_of("pairs", paths, out / "compare.csv", verdicts.COLUMNS, notes)
    pairs = pd.concat(runs) if runs else None
    html = page.render(rows, notes, edge_cases, pairs)
    (out / "index.html").write_text(html, encoding="utf-8")
    (out / "picture.svg").write_text(page.picture(rows), encoding="utf-8")
    here = rows if arguments.all else rows[rows["machine"] == platform.node()]
    others = rows.loc[~rows.index.isin(here.index), "machine"].nunique()
    if not here.empty:
        tables.show(selection.newest(here))
    if others:
        print(f"results of {others} other machines are not shown here: --all shows them")
    print(f"\nindex.html, picture.svg, tidy.csv, wide.csv and summary.md are in {out}")
    return 0


def tables_of(
    kind: str, paths: list[Path], own: Path, columns: list[str], notes: list[str], **options: object
) -> list[pd.DataFrame]:
    """What another command left among the results, and in ``own``, beside what is written.

    Each has its ``file`` in a column of that name. A copy of another is left out.
    """
    found: dict[Path, pd.DataFrame] = {}
    for file in [*of_kind(paths, kind), own]:
        table = beside(file, columns, notes, **options)
        if table is not None and not any(table.equals(other) for other in found.values()):
            found[file] = table
    return [table.assign(file=str(file)) for file, table in found.items()]


def merged(matrices: list[pd.DataFrame]) -> pd.DataFrame | None:
    """Semantics of several files: where they differ a loss has a row for each, and its file."""
    if not matrices:
        return None
    rows = pd.concat(matrices).fillna("")
    rows = rows.drop_duplicates([name for name in rows if name != "file"])
    differing = rows["impl"].duplicated(keep=False)
    named = rows["impl"] + " (" + rows["file"] + ")"
    return rows.assign(impl=rows["impl"].mask(differing, named)).drop(columns="file")


def beside(
    file: Path, columns: list[str], notes: list[str], **options: object
) -> pd.DataFrame | None:
    """The table in ``file``, if there is one; a line in ``notes`` if it is damaged."""
    if not file.exists():
        return None
    try:
        table = pd.read_csv(file, **options)
        missing = [name for name in columns if name not in table]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError) as error:
        notes.append(f"passed over {file}: {error}")
        print(notes[-1], file=sys.stderr)
        return None
    return table


def pick_loss(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports pick",
        description="The fastest right loss that fits, and the line that imports it, for each "
        "environment that was measured. Exit 1 if there is none, 2 if nothing was measured.",
    )
    parser.add_argument("--workload", required=True, metavar="NAME[@TOKENS]")
    parser.add_argument(
        "--memory",
        required=True,
        type=size,
        help="that forward and backward may take beside weights and hidden states, as 8GiB",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="any, if left out")
    parser.add_argument("--dtype", help="any, if left out")
    add_paths(parser)
    arguments = parser.parse_args(argv)
    rows, _ = read_all(parser, arguments.paths)
    if rows.empty:
        return 2
    try:
        picks = pick(rows, arguments.workload, arguments.memory, arguments.device, arguments.dtype)
    except NoPick as reason:
        print(reason, file=sys.stderr)
        return 1
    print("\n\n".join(f"{one}\n{import_line(one.impl)}" for one in picks))
    return 0


def list_regressions(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports regressions",
        description="At which commit did a number rise, and is it back? One line each, the worst "
        "first. Exit 1 if one is open.",
    )
    add_paths(parser)
    parser.add_argument(
        "--margin", type=margin, default=0.05, help="the least rise to name (default: 0.05, 5 %%)"
    )
    arguments = parser.parse_args(argv)
    rows, _ = read_all(parser, arguments.paths)
    if rows.empty:
        return 2
    found = regressions(rows, arguments.margin)
    ours = [one for one in found if not one.environment]
    for one in ours:
        print(one)
    shared = [one for one in found if one.environment]
    if shared:
        print("\nIts environment's, not the code's, as the other implementations rose too:")
    for one in shared:
        print(one)
    still = sum(not one.mended for one in ours)
    series = len(rows.drop_duplicates([*ENVIRONMENT, *QUANTITY, "impl"]))
    print(f"{len(ours)} regressions, {still} open, in {series} series of {len(rows)} numbers")
    return 1 if still else 0


def list_verdicts(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports verdicts",
        description="The verdicts of `python -m benchmarks compare` again, from its raw pairs. "
        "Exit 1 if something regressed or became wrong.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--margin", type=margin, help="another than it was measured with")
    arguments = parser.parse_args(argv)
    try:
        table = verdicts.verdicts(read_pairs(arguments.file), arguments.margin)
    except (OSError, ValueError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 2
    print(verdicts.markdown(table))
    return int(table["verdict"].isin(verdicts.FAILED).any())


def show_calibration(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports calibration",
        description="The table of `python -m benchmarks calibrate` again, from its raw pairs.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--margin", type=margin, default=0.02)
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[8, 40], help="that a comparison may take"
    )
    arguments = parser.parse_args(argv)
    try:
        table = calibration.calibration(
            read_pairs(arguments.file), arguments.margin, arguments.pairs
        )
    except (OSError, ValueError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 2
    print(calibration.markdown(table))
    return 0


def read_pairs(file: Path) -> pd.DataFrame:
    """The raw pairs in ``file``. Raises ``ValueError`` if it is another kind of CSV."""
    rows = pd.read_csv(file)
    missing = [column for column in verdicts.COLUMNS if column not in rows]
    if missing:
        raise ValueError(f"no pairs: it lacks {', '.join(missing)}")
    return rows


def size(text: str) -> float:
    """Bytes, of a text as 8GiB, 512MiB or 8GB."""
    match = re.fullmatch(r"([\d.]+) *([KMGT]?)(i?)B", text)
    try:
        assert match is not None
        return float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")
    except (AssertionError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 8GiB or 512MiB is") from error


def margin(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a margin is between 0 and 1, as 0.05 for 5 %")
    return value


def add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="result files or folders of them: asv's, pytest-benchmark's, tidy CSVs, "
        f"Liger-Kernel's history (default: {', '.join(map(str, DEFAULT_PATHS))})",
    )


def existing(paths: list[Path]) -> list[Path]:
    return [path for path in paths or DEFAULT_PATHS if path.exists()]


def read_all(parser: argparse.ArgumentParser, paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of all of ``paths``; a line, on stderr too, for each file that was passed over."""
    for path in paths:
        if not path.exists():
            parser.error(f"no file or folder {path}")
    rows, notes = read(existing(paths))
    for note in notes:
        print(note, file=sys.stderr)
    if rows.empty:
        print("no results: `make bench` or `python -m benchmarks` makes some", file=sys.stderr)
    return rows, notes


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end as others do where `head` has seen enough
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
