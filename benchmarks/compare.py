"""``python -m benchmarks compare BASE [HEAD]``: did the change make it slower, heavier or wrong?"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import impls
from benchmarks.common import Unmeasurable, check_device, check_timeable, tensors
from benchmarks.paired import Cell, Comparison, Row, WorkerFailed, append, measure
from benchmarks.revisions import WORK_TREE, UnknownRevision
from benchmarks.side_by_side import PASSES
from benchmarks.workloads import UnknownWorkload, workload

USER_ERRORS = (
    impls.UnknownImplementation,
    impls.Unavailable,
    UnknownRevision,
    UnknownWorkload,
    Unmeasurable,
    WorkerFailed,
    OSError,
)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    try:
        check_timeable()
        check_device(arguments.device)
        with Comparison(arguments.base, arguments.head, arguments.device) as comparison:
            return compare(comparison, arguments)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2


def compare(comparison: Comparison, arguments: argparse.Namespace) -> int:
    import pandas as pd

    from reports.verdicts import COLUMNS, markdown, verdicts

    names = arguments.impl or runnable(comparison.changed(), arguments)
    if not names:
        print("no implementation that can be measured here differs; --impl measures one anyway")
        return 0
    cells = [Cell(name, pass_) for name in names for pass_ in arguments.passes]
    give(comparison, names, arguments)
    commits = {
        role: f"{comparison.names[role]} ({comparison.commits[role][:10]})"
        for role in ("base", "head")
    }
    constant = commits | {
        "margin": arguments.margin,
        "workload": arguments.workload,
        "dtype": arguments.dtype,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    measured = measure(
        comparison, cells, arguments.dtype, arguments.margin, arguments.budget, decided
    )
    interrupted = False
    try:
        for row in append(arguments.out, progress(measured, len(cells)), constant, COLUMNS):
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted", file=sys.stderr)
    if not rows:
        return 130
    table = verdicts(pd.DataFrame(rows, columns=COLUMNS))
    print(f"{commits['base']} → {commits['head']}, margin {100 * arguments.margin:g} %\n")
    print(markdown(table))
    print(f"\n{len(rows)} rows in {arguments.out}")
    if interrupted:
        return 130
    if table["verdict"].isin(["regressed", "wrong"]).any():
        return 1
    undecided = table["verdict"].isin(["inconclusive", "unproven"]).any()
    return 3 if undecided and arguments.strict else 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=f"{__doc__} Exit 0: nothing regressed; 1: something did, or is wrong; "
        "2: it could not be measured; 3, with --strict: something is inconclusive or unproven.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="a git revision")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", default=WORK_TREE, help="another; . is the working tree"
    )
    add_cell(parser)
    parser.add_argument("--margin", type=margin, default=0.02, help="what counts as equivalent")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds a cell, after which it is inconclusive"
    )
    parser.add_argument("--strict", action="store_true", help="exit 3 if something is undecided")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/compare.csv"),
        metavar="FILE",
        help="the raw pairs, for `python -m reports verdicts FILE`",
    )
    arguments = parser.parse_args(argv)
    arguments.passes = arguments.passes or ["forward_backward"]
    return arguments


def add_cell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--impl", action="append", default=[], metavar="NAME", help="repeatable; all that differ"
    )
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        choices=PASSES,
        help="repeatable; forward_backward, if none",
    )
    parser.add_argument("--workload", default="gpt2_text@256", metavar="NAME[@TOKENS]")
    parser.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16")
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))


def margin(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a margin is between 0 and 1, as 0.02 for 2 %")
    return value


def decided(rows: list[Row], margin: float) -> set[Cell]:
    """The cells on which there is a verdict, and whose controls hold."""
    import pandas as pd

    from reports.verdicts import effects, proven

    frame = pd.DataFrame(rows)
    done = set()
    for (impl, metric), cell in frame[frame["unit"] == "ms"].groupby(["impl", "metric"]):
        found = effects(cell, margin)
        if proven(found) and found["head"].verdict != "inconclusive":
            done.add(Cell(impl, metric))
    return done


def runnable(names: list[str], arguments: argparse.Namespace) -> list[str]:
    """Those that run here as asked; a line for each that does not."""
    found = []
    for name in names:
        try:
            loss = impls.load(name)
        except impls.Unavailable as reason:
            print(f"skipped: {name} {reason}", file=sys.stderr)
            continue
        support = loss.support
        if arguments.device in support.devices and arguments.dtype in support.dtypes:
            found.append(name)
    return found


def give(comparison: Comparison, names: list[str], arguments: argparse.Namespace) -> None:
    chosen = workload(arguments.workload)
    levels = {impls.load(name).level for name in names}
    comparison.give(
        {level: tensors(chosen, level, arguments.dtype, arguments.device) for level in levels}
    )


def progress(rows: Iterator[Row], cells: int) -> Iterator[Row]:
    """``rows`` again, with a line on stderr that says how far it is."""
    start, pairs = time.monotonic(), 0
    for row in rows:
        if row.get("pair") is not None and row["pair"] + 1 > pairs:
            pairs = row["pair"] + 1
        if sys.stderr.isatty():
            seconds = time.monotonic() - start
            print(f"\r{cells} cells, pair {pairs}, {seconds:.0f} s", end="", file=sys.stderr)
        yield row
    if sys.stderr.isatty():
        print(file=sys.stderr)
