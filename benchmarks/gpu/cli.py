"""``python -m benchmarks gpu``: runs the stages in order and says how each ends."""

import argparse
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.environment.variables import PINNED_ALLOCATOR
from benchmarks.gpu.run import Outcome, run
from benchmarks.gpu.stages import Stage, stages
from benchmarks.gpu.wheels import unpack
from benchmarks.measure.availability import Unmeasurable, check_device
from benchmarks.options import HelpFormatter

KEPT = 25.0  # seconds of the budget, for the last stage, the page
FAILED = ("failed", "out of time", "no time")
LEAST = 5.0  # seconds; a stage with less time left does not begin


DESCRIPTION = """\
Measure everything on a GPU, stage by stage, on a machine that may lack a network and git.
A stage that fails does not stop the next. WHEELS=FOLDER in the environment adds missing
packages from a folder of wheels. Exit code 0: every stage passed, or was skipped for a
reason that it gives; 1: a stage failed; 130: interrupted."""
EXAMPLES = """\
examples:
  python -m benchmarks gpu
  python -m benchmarks gpu --list
  python -m benchmarks gpu --stage gate --stage page
  python -m benchmarks gpu --device cpu --budget 240"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--device",
        default="cuda",
        choices=("cuda", "cpu"),
        help="cpu rehearses the stages at small sizes",
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="run this stage alone (repeatable)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/gpu"),
        metavar="FOLDER",
        help="the folder for results and logs",
    )
    parser.add_argument("--list", action="store_true", help="list the stages and run none")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()  # stages run in the repository's root
    planned = stages(arguments.device, out)
    names = list(dict.fromkeys(stage.name for stage in planned))
    if unknown := [name for name in arguments.stage if name not in names]:
        parser.exit(2, f"no stage {unknown[0]!r}; there are {', '.join(names)}\n")
    wanted = arguments.stage or names
    chosen = [(n, stage) for n, stage in enumerate(planned, 1) if stage.name in wanted]
    if arguments.list:
        for _, stage in chosen:
            print(f"{stage.title:36} {stage.limit:4.0f} s at most")
        return 0
    try:
        check_device(arguments.device)
    except Unmeasurable as reason:
        print(f"{reason}; --device cpu rehearses the stages", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    # A shell that starts a command in the background makes it and its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        variables = environment(Path(scratch))
        if arguments.device == "cpu":
            variables["BENCHMARK_PROFILE"] = "rehearsal"
        return run_all(chosen, arguments.budget, out, variables)


def environment(scratch: Path) -> dict[str, str]:
    """The environment of the stages: this repository, and the wheels that are not installed."""
    packages = [str(ROOT)]
    if folder := os.environ.get("WHEELS"):
        packages.append(str(scratch / "packages"))
        for line in unpack(Path(folder), scratch / "packages"):
            print(line, flush=True)
    packages += filter(None, [os.environ.get("PYTHONPATH")])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        **PINNED_ALLOCATOR,
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONUNBUFFERED": "1",
        # The next stage, and each of the gate's workers, uses what a stage has compiled.
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
    }


def run_all(
    chosen: Sequence[tuple[int, Stage]], budget: float, out: Path, environment: Mapping[str, str]
) -> int:
    """Run the stages in turn, each with its number, and print the result of each.

    Each stage ends within its time limit and all end within the ``budget``. Their logs are in the
    folder ``out``.
    """
    start = time.monotonic()
    outcomes: list[tuple[Stage, Outcome]] = []
    interrupted = False
    for number, stage in chosen:
        elapsed = time.monotonic() - start
        left = budget - elapsed
        print(f"{elapsed:4.0f} s, {max(0.0, left):4.0f} s left: {stage.title}", flush=True)
        usable = left if stage.name == "page" else left - KEPT
        if usable < LEAST:
            outcome = Outcome("no time", f"{max(0, math.floor(usable))} s are left for it")
        else:
            log = out / f"{number:02}-{re.sub('[ @]', '-', stage.title)}.log"
            outcome = run(stage, log, min(stage.limit, usable), environment)
        outcomes.append((stage, outcome))
        print(f"    {outcome.result} {outcome.reason}".rstrip(), flush=True)
        if outcome.result == "interrupted":
            interrupted = True
            break
    print(f"\n{table(outcomes)}\n\nResults and logs are in {out}")
    if interrupted:
        return 130
    return int(any(outcome.result in FAILED for _, outcome in outcomes))


def table(outcomes: Sequence[tuple[Stage, Outcome]]) -> str:
    """A line for each stage: its result, its seconds, and the file that it wrote."""
    rows = [("stage", "result", "seconds", "file")]
    for stage, outcome in outcomes:
        file = stage.result if stage.result and stage.result.exists() else outcome.log
        seconds = f"{outcome.seconds:.0f}" if outcome.seconds else ""
        rows.append((stage.title, outcome.result, seconds, file.name if file else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    )
