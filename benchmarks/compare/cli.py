"""``python -m benchmarks compare BASE [HEAD]``: did the change make it slower, heavier or wrong?"""

import argparse
import functools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import impls
from benchmarks import ROOT, options
from benchmarks.compare import packages, targets
from benchmarks.compare.client import ProcessFailed, ProcessRaised, Server
from benchmarks.compare.pairing import Cell, Comparison, Row, pairs
from benchmarks.compare.targets import WORK_TREE, UnknownRevision, is_foreign, level_in
from benchmarks.environment.progress import track
from benchmarks.measure.availability import Unmeasurable, check_device
from benchmarks.ranks.pool import needs_ranks
from benchmarks.workloads import Workload, workload
from impls.loss import FUNCTIONS, INTERPRETED

USER_ERRORS = (*options.USER_ERRORS, UnknownRevision, packages.CannotBuild, ProcessFailed)
# Small: a disturbance of the machine lasts a while, and the shorter a call is, the more often the
# revisions take turns in that time. GPT-2's logits of 32 tokens still outgrow a core's own caches.
# GPT-2's head takes 150 ms for 32 tokens.
WORKLOADS = {
    "cpu": {"logits": "gpt2_text@32", "linear": "tinystories_1m", "logprobs": "tinystories_1m"},
    # Beyond the L2 cache of any GPU: 200 MB of logits in bfloat16. A call takes a millisecond.
    "cuda": {"logits": "gpt2@2048", "linear": "gpt2@2048", "logprobs": "gpt2@2048"},
}

DESCRIPTION = """\
Did a change make a loss slower, heavier or wrong? Base and head run in turn, with an A/A control
and an injected slowdown.

A target, BASE or HEAD, is one of these:
  main, HEAD~1, .      a git revision of this clone, or of --repo; . is the working tree
  NAME==VERSION        a package of that version; also several, with commas; also torch
  git+URL@REVISION     a package from a repository
  ./FOLDER             a source tree

exit codes:
  0  nothing regressed
  1  a loss regressed or became wrong
  2  a loss that was named, or a target, cannot be measured
  3  with --strict: a time is inconclusive or unproven
  4  with --strict: nothing was measured, as no loss that can be measured here differs"""
EXAMPLES = """\
examples:
  python -m benchmarks compare main                     the working tree against main
  python -m benchmarks compare HEAD~1 HEAD --strict     for a CI job
  python -m benchmarks compare . . --impl logits.eager  the same code: how noisy is this machine?
  python -m benchmarks compare liger-kernel==0.8.4 liger-kernel==0.8.5 --impl linear.liger
  python -m benchmarks compare --repo ../theirs main HEAD --impl their_package.losses:fused_ce"""


def main(argv: list[str], server: Server) -> int:
    arguments = parse(argv)
    from reports.analysis.verdicts import Incomparable

    if arguments.clean:
        print(packages.clean())
        return 0
    try:
        check_device(arguments.device)
        repo = targets.open_repo(arguments.repo) if arguments.repo else ROOT
        arguments.impl = [targets.relative_to_repo(name, repo) for name in arguments.impl]
        names = {"base": arguments.base, "head": arguments.head}
        of = (arguments.dtype, arguments.device, repo, any(map(is_foreign, arguments.impl)))
        with Comparison(server, names, *of) as revisions:
            return compare(revisions, arguments)
    except (*USER_ERRORS, Incomparable) as error:
        print(error, file=sys.stderr)
        return 2


def compare(revisions: Comparison, arguments: argparse.Namespace) -> int:
    names = arguments.impl or changed(revisions)
    for target in revisions.targets.values():
        for name in names:
            targets.check_module(target, name)
    of = arguments.workload, arguments.device
    workloads_of([name for name in names if not is_foreign(name)], *of)  # what is wrong shows now
    unmeasurable = revisions.begin(names, arguments.level)
    for name in filter(lambda name: revisions.levels[name] == "sharded", names):
        unmeasurable.setdefault(name, f"{name} runs on ranks: compare measures in one process")
    for reason in unmeasurable.values():
        if arguments.impl:
            raise Unmeasurable(reason)
        print(f"skipped: {reason}", file=sys.stderr)
    names = [name for name in names if name not in unmeasurable]
    workloads = workloads_of(names, *of, revisions.levels)
    import pandas as pd

    from reports.analysis.calibration import statement
    from reports.analysis.verdicts import (
        FAILED,
        PAIR_COLUMNS,
        PAIRS,
        UNDECIDED,
        markdown,
        verdicts,
    )

    commits = {role: target.label() for role, target in revisions.targets.items()}
    differ = targets.differences(*revisions.targets.values())
    if names:
        revisions.give(workloads)
    constant = commits | {"margin": arguments.margin}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("")
    rows: list[Row] = []
    interrupted = False
    try:
        measured = progress(compared_rows(revisions, names, arguments, constant))
        full = (constant | row for row in measured)
        for row in options.append_rows(arguments.out, full, [*PAIR_COLUMNS, "text"]):
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
    table = verdicts(pd.DataFrame(rows, columns=PAIR_COLUMNS))
    if table.empty:
        if interrupted:
            raise KeyboardInterrupt
        print("no implementation that can be measured here differs; --impl NAME measures it anyway")
        return 4 if arguments.strict else 0
    print(f"{commits['base']} → {commits['head']}, margin {100 * arguments.margin:g} %\n")
    if differ:
        print(f"packages that differ: {', '.join(differ)}\n")
    print(markdown(table))
    if INTERPRETED:
        print("\nno times: TRITON_INTERPRET is set, and its interpreter shows values, not times")
    else:
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
    undecided = table["verdict"][table["verdict"].isin(UNDECIDED)].value_counts()
    if len(undecided):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in undecided.items())
        times = (table["unit"] == "ms").sum()
        print(f"{undecided.sum()} of {times} times are undecided: {counts}")
    if table["verdict"].isin(FAILED).any():
        return 1
    return 3 if len(undecided) and arguments.strict else 0


def changed(revisions: Comparison) -> list[str]:
    """The losses to compare, if none is named. A line for each that differs and is not compared."""
    both = revisions.targets.values()
    for target, name in targets.unpaired(*both):
        print(f"not compared: only {target.name} has {name}", file=sys.stderr)
    found = targets.changed(*both)
    for name in filter(needs_ranks, found):
        print(f"not compared: {name} runs on ranks", file=sys.stderr)
    return [name for name in found if not needs_ranks(name)]


def compared_rows(
    revisions: Comparison, names: list[str], arguments: argparse.Namespace, constant: Row
) -> Iterator[Row]:
    """Bytes and errors of each loss, then times of the losses that are right in both revisions."""
    from reports.analysis.verdicts import injected_slowdown

    cells = []
    for name in names:
        try:
            revisions.prepare(name)
            rows = revisions.exact_rows(name)
        except (Unmeasurable, ProcessRaised) as reason:
            if arguments.impl or (isinstance(reason, ProcessFailed) and not is_foreign(name)):
                raise
            print(f"skipped: {reason}", file=sys.stderr)
            continue
        yield from rows
        of_dtype = [row for row in rows if row["dtype"] == arguments.dtype]
        is_right = all(row["value"] <= 1 for row in of_dtype if row["metric"] == "error")
        if is_right and not INTERPRETED:
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
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", nargs="?", help="a target")
    parser.add_argument("head", metavar="HEAD", nargs="?", default=WORK_TREE, help="another target")
    add_cell(parser, "all that differ")
    options.add_pairing(parser)
    parser.add_argument(
        "--clean", action="store_true", help="remove the packages that were built, and do no more"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 3 if a time is undecided, 4 if nothing is measured",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/compare.csv"),
        metavar="FILE",
        help="the raw pairs, for `python -m reports verdicts FILE`",
    )
    arguments = parser.parse_args(argv)
    if arguments.base is None and not arguments.clean:
        parser.error("BASE is missing")
    arguments.passes = options.with_total(arguments.passes) or ["forward_backward"]
    return arguments


def add_cell(parser: argparse.ArgumentParser, impls_if_none: str) -> None:
    options.add(
        parser,
        "--impl",
        help="a name that `python -m impls` lists, MODULE:FUNCTION or a path to a file "
        f"(repeatable; without it, {impls_if_none})",
    )
    options.add(
        parser,
        "--pass",
        help="what to time (repeatable; without it, forward_backward, which backward adds too)",
    )
    add_input(parser)


def add_input(parser: argparse.ArgumentParser) -> None:
    """The options of what is measured of a loss."""
    from reports.analysis.verdicts import parse_margin

    usual = "; ".join(
        f"on {device}, " + " and ".join(f"{name} for {level}" for level, name in of_levels.items())
        for device, of_levels in WORKLOADS.items()
    )
    options.add(parser, "--workload", help=f"the input; without it, {usual}")
    options.add(parser, "--dtype")
    options.add(parser, "--device")
    parser.add_argument(
        "--margin",
        type=parse_margin,
        default=0.02,
        help="the largest difference that is equivalent",
    )


def decided(rows: list[Row], constant: Row) -> set[Cell]:
    """The cells that have a verdict: their controls hold, and so does the correction for many."""
    import pandas as pd

    from reports.analysis.verdicts import UNDECIDED, verdicts

    table = verdicts(pd.DataFrame(rows).assign(**constant))
    done = table[~table["verdict"].isin(UNDECIDED)]
    return {Cell(one.impl, one.metric) for one in done.itertuples()}


def workloads_of(
    names: list[str], chosen: str | None, device: str, known: Mapping[str, str] = {}
) -> dict[str, Workload]:
    """The workload of each level of ``names``. The names tell the level, or it is ``known``: this
    process imports no loss, as its file may be broken."""
    levels = sorted({known.get(name) or level_in(name) for name in names})
    for level in levels:
        if level not in FUNCTIONS:
            raise impls.UnknownImplementation(
                f"{level!r} is no level; `python -m impls` lists the names to compare"
            )
    if of_ranks := [name for name in names if needs_ranks(name)]:
        raise Unmeasurable(f"{of_ranks[0]} runs on ranks: compare measures in one process")
    return {level: workload(chosen or WORKLOADS[device][level]) for level in levels}


def progress(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield ``rows``, and show a progress bar."""

    def name(row: Row) -> str:
        return f"{row['impl']} {row['metric']}, pair {row.get('pair', 0) + 1}"

    return track(rows, "measuring", name=name)
