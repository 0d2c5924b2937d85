"""``python -m benchmarks.gate``: runs the gate in parallel, and writes a row when a test ends."""

import argparse
import csv
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from benchmarks.environment.description import describe

GATE_COLUMNS = ("impl", "property", "outcome", "seconds", "message", "device", "torch", "commit")


class Recorder:
    """A pytest plugin that writes a row for each test and counts outcomes."""

    def __init__(self, file: TextIO, device: str):
        self.file, self.writer = file, csv.writer(file)
        described = describe(device)
        self.here = {name: described[name] for name in ("device", "torch", "commit")}
        self.writer.writerow(GATE_COLUMNS)
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return  # setup and teardown count only if they fail
        row = row_of(report) | self.here
        self.counts[row["outcome"]] += 1
        self.writer.writerow(row[column] for column in GATE_COLUMNS)
        self.file.flush()


def row_of(report: Any) -> dict[str, Any]:
    """The row of a report. If a worker died, the test that it ran "crashed"."""
    test, _, parameters = report.nodeid.partition("[")
    impl, _, property_ = parameters.removesuffix("]").rpartition("-")
    if "::test_gate" not in test:
        impl, property_ = parameters.removesuffix("]"), test.rpartition("::")[2]
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "deviates"
    elif report.failed and report.when not in ("setup", "call", "teardown"):
        outcome = "crashed"
    return {
        "impl": impl,
        "property": property_,
        "outcome": outcome,
        "seconds": round(getattr(report, "duration", 0.0), 2),
        "message": message(report),
    }


def message(report: Any) -> str:
    """Why the test failed, was skipped, or may deviate, in one line."""
    if reason := getattr(report, "wasxfail", ""):
        return reason.removeprefix("reason: ")
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = (crash.message if crash else str(report.longrepr or "")).strip()
    lacking = re.search(r"^No: (.*)", text, flags=re.MULTILINE)  # what tests.gate.test_gate says
    return lacking[1] if lacking else text.partition("\n")[0]


def workers() -> int:
    """How many processes the gate has: two fewer than cores, and at most 14, to fit in a GPU."""
    return max(2, min(14, (os.cpu_count() or 1) - 2))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--impl", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    # There is a worker for each core, so a worker gets no pool of threads or compiling processes.
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = ["tests/gate/test_gate.py", "--device", arguments.device, "--verbose"]
    command += ["--numprocesses", str(workers()), "--dist", "worksteal"]
    command += ["-rxXf", "--tb", "short", "--durations", "15", "-p", "no:cacheprovider"]
    command += [f"--junitxml={arguments.out.with_suffix('.xml')}"]
    command += [f"--impl={name}" for name in arguments.impl]
    import pytest  # here, because asv imports this module in an environment without pytest

    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        recorder = Recorder(file, arguments.device)
        code = pytest.main(command, plugins=[recorder])
    print(", ".join(f"{count} {outcome}" for outcome, count in recorder.counts.most_common()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
