"""``python -m benchmarks bisect GOOD BAD``: which commit or release made a loss worse?"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT, options
from benchmarks.bisect import candidates
from benchmarks.bisect.steps import CannotMeasure, Step, words
from benchmarks.compare import targets
from benchmarks.compare.cli import USER_ERRORS, add_input

TIMES = ("forward_backward", "forward", "backward")
EXACT = ("peak_memory", "saved_memory", "error")
MORE = 4.0  # the budget of a step that was undecided, as a multiple of --budget

DESCRIPTION = """\
Find the commit, or the release of a package, that made a loss slower, heavier or wrong. Each step
compares GOOD with a candidate, as `compare` does: in turn, with controls. A step that cannot be
installed, imported or run is skipped. What was measured is kept in --out, so the same command goes
on where it stopped.

exit codes:
  0  the commit or release is found
  1  nothing to find, or several candidates are left
  2  GOOD or BAD cannot be measured"""
EXAMPLES = """\
examples:
  python -m benchmarks bisect v1.0 main --impl logits.eager
  python -m benchmarks bisect HEAD~20 HEAD --impl logits.eager --metric saved_memory
  python -m benchmarks bisect 0.7.0 0.8.5 --releases liger-kernel --impl linear.liger
  python -m benchmarks bisect v1.0 main --repo ../theirs --impl their_package.losses:fused_ce"""


@dataclass(frozen=True)
class Judged:
    """What a step found: "good", "bad" or "skipped", and the change or the reason."""

    state: str
    text: str


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    try:
        found = list_candidates(arguments)
        return bisect(found, arguments)
    except (*USER_ERRORS, CannotMeasure) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nthe same command goes on; {arguments.out} has what is done", file=sys.stderr)
        raise


def list_candidates(arguments: argparse.Namespace) -> list[str]:
    """The candidates as targets of ``compare``, from GOOD to BAD."""
    if arguments.releases:
        return candidates.releases(arguments.releases, arguments.good, arguments.bad)
    arguments.repo = targets.open_repo(arguments.repo) if arguments.repo else ROOT
    return candidates.commits(arguments.good, arguments.bad, arguments.repo)


def bisect(found: list[str], arguments: argparse.Namespace) -> int:
    kind = "releases" if arguments.releases else "commits"
    if len(found) < 2:
        raise CannotMeasure("GOOD and BAD are the same")
    steps = math.ceil(math.log2(len(found) - 1)) + 1
    print(f"{len(found) - 1} {kind} after {show(found[0], arguments)}: about {steps} steps")

    def judge(number: int) -> Judged:
        judged = compare(found[0], found[number], arguments)
        told = f"{show(found[number], arguments)}: {judged.state}, {judged.text}"
        print(told, flush=True)
        return judged

    first = judge(len(found) - 1)
    if first.state == "skipped":
        raise CannotMeasure(f"BAD cannot be compared with GOOD: {first.text}")
    if first.state == "good":
        print(f"nothing to find: {arguments.metric} is no worse in BAD")
        return 1
    good, bad = search(len(found), lambda number: judge(number).state)
    if bad - good > 1:
        *between, last = (show(one, arguments) for one in found[good + 1 : bad + 1])
        print(f"the first bad is {last}, or before it {', '.join(between)}, which was skipped")
        return 1
    step = compare(found[good], found[bad], arguments)
    culprit, before = show(found[bad], arguments), show(found[good], arguments)
    print(f"{culprit} is the first that is bad. {arguments.metric} against {before}: {step.text}")
    if not arguments.releases:
        print(candidates.subject(found[bad], arguments.repo))
    return 0


def search(count: int, judge: Callable[[int], str]) -> tuple[int, int]:
    """The last good and the first bad of ``count`` candidates: 0 is good, and the last is bad.

    Candidates that ``judge`` skips may lie between the two.
    """
    good, bad = 0, count - 1
    skipped: set[int] = set()
    while left := [number for number in range(good + 1, bad) if number not in skipped]:
        number = min(left, key=lambda one: abs(2 * one - good - bad))
        state = judge(number)
        if state == "good":
            good = number
        elif state == "bad":
            bad = number
        else:
            skipped.add(number)
    return good, bad


def compare(base: str, head: str, arguments: argparse.Namespace) -> Judged:
    """``head`` against ``base``. What is undecided is measured once more, for longer."""
    budgets = (0.0,) if arguments.metric in EXACT else (1.0, MORE)
    judged = Judged("skipped", "not measured")
    for budget in budgets:
        step = Step(base, head, step_options(arguments, budget * arguments.budget), arguments.out)
        print(step.command, file=sys.stderr, flush=True)
        try:
            rows = step.verdicts()
        except CannotMeasure as reason:
            return Judged("skipped", str(reason).removeprefix(f"{head}: "))
        of_metric = [row for row in rows if row.metric == arguments.metric]
        if not of_metric:
            return Judged("skipped", f"no {arguments.metric}: the gradients are wrong")
        judged = state_of(of_metric)
        if judged.state != "skipped":
            return judged
    return judged


def state_of(rows: list[Any]) -> Judged:
    """The state of the rows of a metric: of an error, there is a row for each dtype."""
    from reports.analysis.verdicts import UNDECIDED, change_of

    worst = next((one for one in rows if one.verdict in ("regressed", "wrong")), rows[0])
    if worst.verdict == "wrong in both":
        raise CannotMeasure(f"GOOD is wrong in {worst.dtype}: its error is {worst.base:.3g}")
    text = f"{worst.verdict} {change_of(worst)}".strip()
    if worst.metric == "error":
        text = (
            f"{worst.verdict} in {worst.dtype}: {worst.base:.3g} → {worst.head:.3g} of its budget"
        )
    if worst.verdict in UNDECIDED:
        return Judged("skipped", text)
    return Judged("bad" if worst.verdict in ("regressed", "wrong") else "good", text)


def step_options(arguments: argparse.Namespace, budget: float) -> tuple[str, ...]:
    """The options of ``compare`` for a step."""
    given = {
        "--impl": arguments.impl,
        "--pass": arguments.metric if arguments.metric in TIMES else None,
        "--repo": arguments.repo if arguments.repo != ROOT else None,
        "--level": arguments.level,
        "--workload": arguments.workload,
        "--dtype": arguments.dtype,
        "--device": arguments.device,
        "--margin": arguments.margin,
        "--budget": f"{budget:g}",
    }
    return words(given)


def show(candidate: str, arguments: argparse.Namespace) -> str:
    return candidate if arguments.releases else candidate[:10]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks bisect",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument("good", metavar="GOOD", help="a git revision, or a version")
    parser.add_argument("bad", metavar="BAD", help="a later git revision, or a later version")
    parser.add_argument(
        "--releases", metavar="PACKAGE", help="GOOD and BAD are versions of this package"
    )
    parser.add_argument(
        "--impl",
        required=True,
        metavar="NAME",
        help="a name that `python -m impls` lists, MODULE:FUNCTION or a path to a file",
    )
    parser.add_argument(
        "--metric",
        default=TIMES[0],
        choices=(*TIMES, *EXACT),
        metavar="METRIC",
        help=f"what became worse: {', '.join((*TIMES, *EXACT))}",
    )
    add_input(parser)
    options.add_pairing(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/bisect"),
        metavar="FOLDER",
        help="where the raw pairs of each step are kept",
    )
    return parser.parse_args(argv)
