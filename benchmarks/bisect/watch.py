"""``python -m benchmarks watch``: what each release of a package with losses changed."""

import argparse
import csv
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import impls
from benchmarks import ROOT, options
from benchmarks.bisect.candidates import published
from benchmarks.bisect.steps import CannotMeasure, Step, digest, words
from benchmarks.compare.cli import USER_ERRORS, add_input
from benchmarks.compare.packages import CannotBuild, canonical, package_set
from benchmarks.compare.sources import sources
from benchmarks.environment.progress import track
from benchmarks.environment.variables import first_on_path
from benchmarks.ranks.pool import needs_ranks

PACKAGES = ("torch", "liger-kernel", "cut-cross-entropy")
# Every loss imports torch. These compute with torch's own loss and nothing of ours.
OF_TORCH = ("logits.builtin", "linear.builtin", "linear.torch_chunked")
COLUMNS = ("package", "base", "head", "impl", "what", "from", "to", "change", "verdict")
SKIPPED = {"verdict": "not measured"}
FINISHED = (0, 1)  # pytest's exit codes if all tests ran
UNCHANGED = ("equivalent", "right", "wrong in both", "the same")

DESCRIPTION = """\
Compare the last releases of packages with losses, each with the release before it: time, memory,
error, and the properties of the gate. A package must be installed here. Its releases are installed
elsewhere, and kept; `python -m benchmarks compare --clean` removes them. What was measured is kept
in --out, so the same command goes on where it stopped."""
EXAMPLES = """\
examples:
  python -m benchmarks watch                                  may run for an hour
  python -m benchmarks watch torch==2.11.0,2.13.0,2.14.1      these releases alone
  TRITON_INTERPRET=1 python -m benchmarks watch liger-kernel --last 5"""

Row = dict[str, Any]


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        work = [item for package in arguments.packages for item in plan(package, arguments)]
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    rows: list[Row] = []
    try:
        for package, base, head, name in track(work, "release", name=lambda item: item[2]):
            found = list(compared(package, base, head, name, arguments))
            rows += found
            for row in found:
                if row["verdict"] not in UNCHANGED:
                    print(line(row), flush=True)
    except KeyboardInterrupt:
        print(f"\nthe same command goes on; {arguments.out} has what is done", file=sys.stderr)
        raise
    file = arguments.out / "watch.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    changed = sum(row["verdict"] not in UNCHANGED for row in rows)
    print(f"{len(work)} comparisons, {changed} of {len(rows)} results differ; they are in {file}")
    return 0


def line(row: Row) -> str:
    numbers = " → ".join(filter(None, (str(row["from"]), str(row["to"]))))
    facts = (row["what"], row["verdict"], row["change"] or numbers)
    return f"{row['package']} {row['base']} → {row['head']} · {row['impl']} · {' '.join(facts)}"


def plan(asked: str, arguments: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """What to compare: the package, two releases and a loss. Raises ``CannotBuild``."""
    from packaging.version import Version

    package, _, versions = asked.partition("==")
    package = canonical(package)
    known = [version for version in published(package) if "+" not in version]
    releases = versions.split(",") if versions else sorted(known, key=Version)[-arguments.last :]
    if unknown := [one for one in releases if one not in known]:
        raise CannotBuild(f"{package} has no release {', '.join(unknown)}")
    if len(releases) < 2:
        raise CannotBuild(f"{package}: there are no two releases to compare")
    names = arguments.impl or losses_of(package)
    return [(package, *both, name) for both in pairwise(releases) for name in names]


def losses_of(package: str) -> list[str]:
    """The losses that import ``package``, or compute with torch alone if it is torch."""
    if package == "torch":
        return list(OF_TORCH)
    modules = {
        module: package
        for module, of in importlib.metadata.packages_distributions().items()
        if package in map(canonical, of)
    }
    names = [
        name
        for name in impls.names()
        if not needs_ranks(name)
        and any(Path(module) in sources(ROOT, name, (), modules) for module in modules)
    ]
    if not names:
        raise CannotBuild(f"no loss here uses {package}, or it is not installed")
    return names


def compared(
    package: str, base: str, head: str, name: str, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The rows of a loss at two releases."""
    from reports.analysis.verdicts import change_of

    of: Row = {"package": package, "base": base, "head": head, "impl": name}
    ends = f"{package}=={base}", f"{package}=={head}"
    step = Step(*ends, step_options(name, arguments), arguments.out)
    try:
        for one in step.verdicts():
            what = one.metric if one.metric != "error" else f"error in {one.dtype}"
            values = {"from": f"{one.base:.4g}", "to": f"{one.head:.4g}"}
            yield of | values | {"what": what, "change": change_of(one), "verdict": one.verdict}
    except CannotMeasure as reason:
        yield of | {"what": "compare", "from": "", "to": "", "change": str(reason)} | SKIPPED
    try:
        before, after = (lacking(end, name, arguments) for end in ends)
    except (CannotBuild, CannotMeasure) as reason:
        yield of | {"what": "gate", "from": "", "to": "", "change": str(reason)} | SKIPPED
        return
    gate = {"what": "gate", "from": " ".join(sorted(before)), "to": " ".join(sorted(after))}
    parts = [f"-{one}" for one in sorted(before - after)]
    parts += [f"+{one}" for one in sorted(after - before)]
    verdict = "lacks more" if after - before else "lacks less" if before - after else "the same"
    yield of | gate | {"change": " ".join(parts), "verdict": verdict}


def step_options(name: str, arguments: argparse.Namespace) -> tuple[str, ...]:
    """The options of ``compare`` for a loss."""
    given = {
        "--impl": name,
        "--workload": arguments.workload,
        "--dtype": arguments.dtype,
        "--device": arguments.device,
        "--margin": arguments.margin,
        "--budget": f"{arguments.budget:g}",
    }
    return words(given)


def lacking(release: str, name: str, arguments: argparse.Namespace) -> set[str]:
    """The properties of the gate that the loss lacks with this release.

    Raises ``CannotMeasure`` if the gate ran no property, and ``CannotBuild``.
    """
    of = digest("gate", release, name, arguments.device)
    file = arguments.out / f"gate-{release}-{name}-{of}.csv"
    if not file.exists():
        run_gate(release, name, arguments.device, file)
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if all(row["outcome"] == "skipped" for row in rows):
        raise CannotMeasure(f"{release}: {rows[0]['message'] if rows else 'no property was tried'}")
    # A deviation that is declared and does not show fails, but the property holds.
    holds = [row["property"] for row in rows if "XPASS" in row["message"]]
    bad = [row["property"] for row in rows if row["outcome"] in ("failed", "deviates", "crashed")]
    return {*bad} - {*holds}


def run_gate(release: str, name: str, device: str, file: Path) -> None:
    found = package_set([release])
    on_path = first_on_path(ROOT, *([found.folder] if found is not None else []))
    part = file.with_suffix(".part")
    log = file.with_suffix(".log")
    command = [sys.executable, "-m", "benchmarks.gate", "--device", device, "--impl", name]
    command += ["--out", str(part)]
    environment = os.environ | on_path
    with log.open("w") as said:
        done = subprocess.run(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
    if done.returncode not in FINISHED:
        raise CannotMeasure(f"{release}: the gate did not end well; {log} has why")
    part.rename(file)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks watch",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "packages",
        nargs="*",
        default=PACKAGES,
        metavar="PACKAGE[==VERSION,VERSION]",
        help="a package, or some of its releases in this order",
    )
    parser.add_argument("--last", type=int, default=3, help="how many releases, without VERSION")
    options.add(
        parser, "--impl", help="a loss (repeatable; without it, those that use the package)"
    )
    add_input(parser)
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds for each time of a comparison"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/watch"),
        metavar="FOLDER",
        help="where all results are kept",
    )
    arguments = parser.parse_args(argv)
    if arguments.last < 2:
        parser.error("--last is at least 2")
    return arguments
