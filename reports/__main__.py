"""``python -m reports``: runs the command that the first word names, by default page."""

import argparse
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from reports.analysis import calibration, verdicts
from reports.analysis.change_points import largest_first
from reports.analysis.pick import PLANNED, NoPick, pick
from reports.analysis.selection import measured_here, newest, of_last_commit
from reports.analysis.series import QUANTITY, SERIES_ENVIRONMENT, in_order
from reports.commands import answer
from reports.readers.files import read, read_csv, read_kind
from reports.readers.schema import COLUMNS
from reports.render import page, tables
from reports.render.by_commit import listing

DEFAULT_PATHS = [Path(".asv/results"), Path(".benchmarks"), Path("reports/measured")]
PLANS = [Path("reports/measured/plan.csv"), Path("reports/out/plan.csv")]


def main(argv: list[str]) -> int:
    if argv[:1] in (["--help"], ["-h"]):
        print(HELP)
        return 0
    is_command = bool(argv) and argv[0] in COMMANDS
    name, rest = (argv[0], argv[1:]) if is_command else (DEFAULT, argv)
    command, _ = COMMANDS[name]
    return command(rest)


def write_page(argv: list[str]) -> int:
    parser = new_parser(
        "",
        "Make tables, tidy CSVs, a picture and a page that opens offline, from all results.",
        "python -m reports",
        "python -m reports results/a100 results/h100 --out /tmp/page",
    )
    add_paths(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out"),
        metavar="FOLDER",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="print the tables of all machines and of all commits",
    )
    arguments = parser.parse_args(argv)
    rows, notes = read_all(parser, arguments.paths)
    if rows.empty:
        return 1
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows[COLUMNS].to_csv(out / "tidy.csv", index=False)
    tables.wide(rows).to_csv(out / "wide.csv", index=False)
    summary = tables.render(newest(rows))
    paths = existing(arguments.paths)
    of_cases = [out / "edge_cases.csv"], ["impl"], notes
    edge_cases = page.merged(read_kind("edge_cases", paths, *of_cases, keep_default_na=False))
    if edge_cases is not None:
        summary += f"\n\n### What each does in edge cases\n\n{tables.edge_case_table(edge_cases)}"
    (out / "summary.md").write_text(summary + "\n", encoding="utf-8")
    own = [out / "compare.csv"]
    runs = read_kind("pairs", paths, own, verdicts.PAIR_COLUMNS, notes, **verdicts.PAIR_TYPES)
    pairs = pd.concat(runs) if runs else None
    html = page.render(rows, notes, edge_cases, pairs)
    (out / "index.html").write_text(html, encoding="utf-8")
    (out / "picture.svg").write_text(page.picture(rows), encoding="utf-8")
    shown = rows if arguments.all else of_last_commit(rows[measured_here(rows)])
    if not shown.empty:
        tables.show(newest(shown))
    if len(shown) < len(rows):
        print(
            "the results of other machines and of older commits are in summary.md, and --all shows "
            "them here"
        )
    print(f"\nindex.html, picture.svg, tidy.csv, wide.csv and summary.md are in {out}")
    return 0


def pick_loss(argv: list[str]) -> int:
    parser = new_parser(
        "pick",
        "Name the fastest right loss that fits, and the line that imports it, for each "
        "environment\nthat was measured. If the workload was not measured, peaks are those of a "
        "plan: in PATH or in\nreports/out/plan.csv, where `python -m benchmarks plan` writes it.\n"
        "Exit 1: no loss fits; 2: nothing was measured.",
        "python -m reports pick --workload gpt2_text --memory 256MiB",
        "python -m reports pick --workload llama3_8b@8192 --memory 2GiB --device cuda "
        "--dtype bfloat16",
    )
    parser.add_argument("--workload", required=True, metavar="NAME[@TOKENS]")
    parser.add_argument(
        "--memory",
        required=True,
        type=size,
        help="what forward and backward may take in addition to weights and hidden states, as 8GiB",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: any)")
    parser.add_argument("--dtype", help="(default: any)")
    add_paths(parser)
    arguments = parser.parse_args(argv)
    rows, notes = read_all(parser, arguments.paths)
    if rows.empty:
        return 2
    found = read_kind("plan", existing(arguments.paths), PLANS, PLANNED, notes)
    plans = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=PLANNED)
    wanted = arguments.workload, arguments.memory, arguments.device, arguments.dtype
    try:
        picks = pick(rows, plans, *wanted)
    except NoPick as reason:
        print(reason, file=sys.stderr)
        return 1
    print("\n\n".join(map(answer, picks)))
    return 0


def list_regressions(argv: list[str]) -> int:
    parser = new_parser(
        "regressions",
        "Name the commits at which a number rose, what rose there, and whether that is fixed or "
        "partly\nfixed, the newest commit last. Exit 1: a regression is open, also if it is partly "
        "fixed;\n2: nothing was measured.",
        "python -m reports regressions",
        "python -m reports regressions results/ --margin 0.1",
        "python -m reports regressions --all",
    )
    add_paths(parser)
    parser.add_argument(
        "--margin",
        type=verdicts.parse_margin,
        default=0.05,
        help="the least rise to name (default: 0.05, 5 %%)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="a line for each rise of each cell, with exact numbers, the worst first",
    )
    arguments = parser.parse_args(argv)
    rows, _ = read_all(parser, arguments.paths)
    if rows.empty:
        return 2
    found = largest_first(rows, arguments.margin)
    order = {commit: n for n, commit in enumerate(in_order(rows)["commit"].unique())}
    for environment in (False, True):
        part = [one for one in found if one.environment == environment]
        rises = [one for one in part if one.rise]
        if environment and rises:
            print(
                "\nChanges of the environment, not of the code: the other implementations rose too"
            )
        for line in rises if arguments.all else listing(part, order):
            print(line)
    ours = [one for one in found if one.rise and not one.environment]
    still = sum(not one.fixed for one in ours)
    series = len(rows.drop_duplicates([*SERIES_ENVIRONMENT, *QUANTITY, "impl"]))
    more = "" if arguments.all else " (--all lists each)"
    print(f"{len(ours)} regressions, {still} open, in {series} series of {len(rows)} numbers{more}")
    return 1 if still else 0


def read_pairs(file: Path) -> pd.DataFrame:
    """The raw pairs of a CSV. Raises ``ValueError`` if it has none."""
    if (pairs := read_csv(file, verdicts.PAIR_COLUMNS, **verdicts.PAIR_TYPES)).empty:
        raise ValueError("it has no pairs")
    return pairs


def list_verdicts(argv: list[str]) -> int:
    parser = new_parser(
        "verdicts",
        "Repeat the verdicts of `python -m benchmarks compare` from its raw pairs.\n"
        "Exit 1: something regressed or became wrong; 2: the file has no pairs.",
        "python -m reports verdicts reports/out/compare.csv",
        "python -m reports verdicts reports/out/compare.csv --margin 0.05",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="raw pairs, as a CSV")
    parser.add_argument(
        "--margin", type=verdicts.parse_margin, help="(default: the margin of the run)"
    )
    arguments = parser.parse_args(argv)
    try:
        table = verdicts.verdicts(read_pairs(arguments.file), arguments.margin)
    except (OSError, ValueError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 2
    print(verdicts.markdown(table))
    return int(table["verdict"].isin(verdicts.FAILED).any())


def show_calibration(argv: list[str]) -> int:
    parser = new_parser(
        "calibration",
        "Repeat the table of `python -m benchmarks calibrate` from its raw pairs.\n"
        "Exit 2: the file has no pairs.",
        "python -m reports calibration reports/out/calibration.csv",
        "python -m reports calibration reports/out/calibration.csv --margin 0.05 --pairs 20",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="raw pairs, as a CSV")
    parser.add_argument(
        "--margin", type=verdicts.parse_margin, default=0.02, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        nargs="+",
        default=[8, 40],
        help="the largest number of pairs of a comparison (default: 8 40)",
    )
    arguments = parser.parse_args(argv)
    try:
        pairs = read_pairs(arguments.file)
        table = calibration.calibration(pairs, arguments.margin, arguments.pairs)
    except (OSError, ValueError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 2
    print(calibration.markdown(table))
    return 0


DEFAULT = "page"
# The function that runs each command, and what the command does.
COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    DEFAULT: (write_page, "tables, CSVs and one page of all results (also without a command)"),
    "pick": (pick_loss, "the fastest right loss that fits in memory"),
    "regressions": (list_regressions, "the commits at which a number rose"),
    "verdicts": (list_verdicts, "the verdicts of `benchmarks compare` from its raw pairs"),
    "calibration": (show_calibration, "the table of `benchmarks calibrate` from its raw pairs"),
}
HELP = f"""usage: python -m reports [COMMAND] [PATH ...] [OPTION ...]

Say what the result files mean.

commands:
{chr(10).join(f"  {name:13}{what}" for name, (_, what) in COMMANDS.items())}

`python -m reports COMMAND --help` shows the options of a command, and examples."""


def new_parser(command: str, description: str, *examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m reports {command}".rstrip(),
        description=description,
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def size(text: str) -> float:
    """The bytes in a text such as 8GiB, 512MiB or 8GB."""
    match = re.fullmatch(r"([\d.]+) *([KMGT]?)(i?)B", text)
    try:
        assert match is not None
        return float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")
    except (AssertionError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 8GiB or 512MiB is") from error


def add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="result files, or folders with such files: asv's, pytest-benchmark's, tidy CSVs, "
        f"Liger-Kernel's history (default: {', '.join(map(str, DEFAULT_PATHS))})",
    )


def existing(paths: list[Path]) -> list[Path]:
    return [path for path in paths or DEFAULT_PATHS if path.exists()]


def read_all(parser: argparse.ArgumentParser, paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """The rows in ``paths``, and the lines about files passed over, which stderr gets too."""
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
    if hasattr(signal, "SIGPIPE"):  # `head` closes the pipe: end without a traceback
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
