"""A reader that has seen enough, as ``head``, closes the pipe: the command then ends quietly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ROOT

SMALL = ("--impl", "logits.eager")
# Without a buffer, the first line that is printed raises. `make test` tries the first two so.
COMMANDS = [
    ("reports", "reports/measured/epyc.csv", "--out", "OUT"),
    ("benchmarks", "gpu", "--list"),
    ("benchmarks", "gpu", "--help"),
    ("impls", "--json"),
    ("benchmarks", "edge-cases", *SMALL, "--out", "OUT"),
    ("benchmarks", "plan", "--workload", "notebook", *SMALL, "--out", "OUT"),
]


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        *(pytest.param(words, "", id=" ".join(words)) for words in COMMANDS),
        *(pytest.param(words, "1", id=f"{' '.join(words)} -u") for words in COMMANDS[:2]),
        *(
            pytest.param(words, "1", id=f"{' '.join(words)} -u", marks=pytest.mark.slow)
            for words in COMMANDS[2:]
        ),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(
    command: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert "Traceback" not in run.stderr
    assert "Broken pipe" not in run.stderr
    # As a shell sees a command that the signal ended; argparse passes over it where it prints.
    assert run.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE, 0)
    assert run.returncode or "--help" in command
