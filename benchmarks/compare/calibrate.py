"""``python -m benchmarks calibrate``: how often is ``compare`` wrong on this machine?"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import options
from benchmarks.compare.cli import USER_ERRORS, add_cell, progress, workloads_of
from benchmarks.compare.client import Server
from benchmarks.compare.pairing import Cell, Comparison, Row
from benchmarks.compare.targets import WORK_TREE, is_foreign
from benchmarks.measure.availability import Unmeasurable, check_device, check_timeable

SAME = {"base": WORK_TREE, "head": WORK_TREE}
CELLS = ["logits.builtin", "logits.eager", "logits.fused", "linear.builtin"]

DESCRIPTION = """\
How often is `compare` wrong on this machine, and which slowdowns does it see? The same code runs
against itself many times. The table is kept in reports/analysis/calibration.csv, and `compare`
quotes it."""
EXAMPLES = """\
examples:
  python -m benchmarks calibrate
  python -m benchmarks calibrate --impl logits.eager --comparisons 20
  python -m reports calibration reports/out/calibration.csv --pairs 8"""


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    import pandas as pd

    from reports.analysis.calibration import calibration, markdown, record
    from reports.analysis.verdicts import PAIR_COLUMNS

    constant = SAME | {"margin": arguments.margin}
    rows: list[Row] = []
    interrupted = False
    try:
        check_timeable()
        check_device(arguments.device)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("")
        measured = (constant | row for row in progress(same_against_same(arguments)))
        for row in options.append_rows(arguments.out, measured, [*PAIR_COLUMNS, "text"]):
            rows.append(row)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted", file=sys.stderr)
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    found = calibration(pairs, arguments.margin, [arguments.pairs, 5 * arguments.pairs])
    print(f"{markdown(found)}\n\n{len(rows)} rows in {arguments.out}")
    if interrupted:
        return 130
    record(found)
    return 0


def same_against_same(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows of the working tree's ``impls`` against itself. Each comparison has a new server."""
    from reports.analysis.verdicts import injected_slowdown

    cells = [Cell(name, pass_) for name in arguments.impl for pass_ in arguments.passes]
    for number in range(-(-arguments.comparisons // len(cells))):
        with Server(arguments.device == "cuda") as server:
            of = (arguments.dtype, arguments.device)
            whole = any(map(is_foreign, arguments.impl))
            revisions = Comparison(server, SAME, *of, whole=whole)
            for reason in revisions.begin(arguments.impl).values():
                raise Unmeasurable(reason)
            chosen = arguments.workload, arguments.device, revisions.levels
            revisions.give(workloads_of(arguments.impl, *chosen))
            for name in arguments.impl:
                revisions.prepare(name)
            for pair in range(arguments.pairs):
                at = number * arguments.pairs + pair
                yield from revisions.pair(at, cells, injected_slowdown(arguments.margin))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks calibrate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    add_cell(parser, ", ".join(CELLS))
    parser.add_argument("--comparisons", type=int, default=200, help="of all losses together")
    parser.add_argument("--pairs", type=int, default=8, help="of a comparison")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/calibration.csv"),
        metavar="FILE",
        help="the raw pairs, for `python -m reports calibration FILE`",
    )
    arguments = parser.parse_args(argv)
    arguments.impl = arguments.impl or CELLS
    arguments.passes = arguments.passes or ["forward_backward"]
    return arguments
