"""``python -m benchmarks compare BASE [HEAD]``: did the change make it slower, heavier or wrong?"""

import argparse
import functools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

import impls
from benchmarks import options
from benchmarks.compare.client import ProcessFailed, Server
from benchmarks.compare.pairing import Cell, Comparison, Row, append, pairs
from benchmarks.compare.targets import WORK_TREE, UnknownRevision
from benchmarks.measure.availability import Unmeasurable, check_device, check_timeable
from benchmarks.ranks.pool import needs_ranks
from benchmarks.workloads import Workload, workload
from impls.loss import FUNCTIONS

USER_ERRORS = (*options.USER_ERRORS, UnknownRevision, ProcessFailed)
ROLES = ("base", "head")
# Small: what disturbs a machine lasts a while, and the shorter a call, the more often the revisions
# take turns in that time. Of 32 tokens GPT-2's logits still outgrow the cores' own caches; its head
# takes 150 ms for them.
WORKLOADS = {
    "cpu": {"logits": "gpt2_text@32", "linear": "tinystories_1m"},
    # Beyond the L2 cache of any GPU: 200 MB of logits in bfloat16. A call takes a millisecond.
    "cuda": {"logits": "gpt2@2048", "linear": "gpt2@2048"},
}


def main(argv: list[str], server: Server) -> int:
    arguments = parse(argv)
    try:
        check_timeable()
        check_device(arguments.device)
        names = {"base": arguments.base, "head": arguments.head}
        return compare(Comparison(server, names, arguments.dtype, arguments.device), arguments)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2


def compare(revisions: Comparison, arguments: argparse.Namespace) -> int:
    names = arguments.impl or revisions.changed()
    workloads = workloads_of(names, arguments.workload, arguments.device)
    revisions.begin(names)
    import pandas as pd

    from reports.analysis.calibration import statement
    from reports.analysis.verdicts import FAILED, PAIR_COLUMNS, PAIRS, markdown, verdicts

    commits = {
        role: f"{revisions.names[role]} ({short(revisions.commits[role])})" for role in ROLES
    }
    if names:
        revisions.give(workloads)
    constant = commits | {"margin": arguments.margin}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    interrupted = False
    try:
        measured = progress(measure(revisions, names, arguments, constant))
        for row in append(arguments.out, measured, constant, PAIR_COLUMNS):
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
    table = verdicts(pd.DataFrame(rows, columns=PAIR_COLUMNS))
    if table.empty:
        if interrupted:
            raise KeyboardInterrupt
        print("no implementation that can be measured here differs; --impl measures one anyway")
        return 0
    print(f"{commits['base']} → {commits['head']}, margin {100 * arguments.margin:g} %\n")
    print(markdown(table))
    print(f"\n{statement(rows[0], arguments.margin)}")
    print(f"\n{len(rows)} rows in {arguments.out}")
    if interrupted:
        raise KeyboardInterrupt
    for one in table[table["unit"] == "ms"].itertuples():
        if one.pairs < PAIRS:
            seconds = math.ceil(PAIRS * arguments.budget / one.pairs)
            print(
                f"{one.impl} {one.metric}: {one.pairs:.0f} of the {PAIRS} pairs that a verdict "
                f"needs were measured in time: --budget {seconds}"
            )
    if table["verdict"].isin(FAILED).any():
        return 1
    undecided = table["verdict"].isin(["inconclusive", "unproven"]).any()
    return 3 if undecided and arguments.strict else 0


def measure(
    revisions: Comparison, names: list[str], arguments: argparse.Namespace, constant: Row
) -> Iterator[Row]:
    """Bytes and errors of each, then times of those whose gradients are right in both."""
    from reports.analysis.verdicts import injected_slowdown

    cells = []
    for name in names:
        try:
            revisions.prepare(name)
            rows = revisions.exact(name)
        except Unmeasurable as reason:
            if arguments.impl:
                raise
            tqdm.write(f"skipped: {reason}", file=sys.stderr)
            continue
        yield from rows
        if all(row["value"] <= 1 for row in rows if row["metric"] == "error"):
            cells += [Cell(name, pass_) for pass_ in arguments.passes]
    yield from pairs(
        revisions,
        cells,
        injected_slowdown(arguments.margin),
        arguments.budget,
        functools.partial(decided, constant=constant),
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=f"{__doc__} Exit 0: nothing regressed; 1: something did, or became wrong; "
        "2: it could not be measured; 3, with --strict: something is inconclusive or unproven.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="a git revision")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", default=WORK_TREE, help="another; . is the working tree"
    )
    add_cell(parser, "all that differ")
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


def add_cell(parser: argparse.ArgumentParser, impls_if_none: str) -> None:
    options.add(
        parser,
        "--impl",
        help=f"a name that `python -m impls` lists (repeatable; {impls_if_none}, if none)",
    )
    options.add(parser, "--pass", help="what to time (repeatable; forward_backward, if none)")
    usual = "; ".join(
        f"on {device} " + ", of ".join(" ".join(of_level) for of_level in of_levels.items())
        for device, of_levels in WORKLOADS.items()
    )
    options.add(parser, "--workload", help=f"by default {usual}")
    options.add(parser, "--dtype")
    options.add(parser, "--device")
    parser.add_argument("--margin", type=margin, default=0.02, help="what counts as equivalent")


def margin(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a margin is between 0 and 1, as 0.02 for 2 %")
    return value


def decided(rows: list[Row], constant: Row) -> set[Cell]:
    """The cells on which there is a verdict that holds among so many, and whose controls hold."""
    import pandas as pd

    from reports.analysis.verdicts import verdicts

    table = verdicts(pd.DataFrame(rows).assign(**constant))
    done = table[~table["verdict"].isin(["inconclusive", "unproven"])]
    return {Cell(one.impl, one.metric) for one in done.itertuples()}


def workloads_of(names: list[str], chosen: str | None, device: str) -> dict[str, Workload]:
    """The workload of each level that ``names`` are of. The names alone say which: the files may be
    broken, and are for other processes to import."""
    levels = sorted({name.partition(".")[0] for name in names})
    for level in levels:
        if level not in FUNCTIONS:
            raise impls.UnknownImplementation(
                f"{level!r} is no level: to compare are names that `python -m impls` lists"
            )
    if of_ranks := [name for name in names if needs_ranks(name)]:
        raise Unmeasurable(f"{of_ranks[0]} runs on ranks: compare measures in one process")
    return {level: workload(chosen or WORKLOADS[device][level]) for level in levels}


def short(commit: str) -> str:
    return commit[:10] + ("+" if commit.endswith("+") else "")


def progress(rows: Iterable[Row]) -> Iterator[Row]:
    """``rows`` again, with a bar that says how far it is."""
    with tqdm(desc="measuring", unit=" blocks", leave=False, disable=None) as bar:
        for row in rows:
            at = f"{row['impl']} {row['metric']}, pair {row.get('pair', 0) + 1}"
            bar.set_postfix_str(at, refresh=False)
            bar.update()
            yield row
