"""Runs a command whose stderr is a terminal."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest

from benchmarks import ROOT


def run_on_terminal(
    command: Sequence[str],
    interrupt_at: str | None = None,
    env: Mapping[str, str] = os.environ,
    **options: Any,
) -> tuple[subprocess.Popen[bytes], str]:
    """The process, which has ended, and what the terminal got, without colours.

    The command gets Ctrl-C when the terminal's text matches ``interrupt_at``.
    """
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    env = env | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=env, **options)
    os.close(stderr)
    written, shown = b"", ""
    with suppress(OSError):  # the command has ended
        while part := os.read(terminal, 4096):
            written += part
            shown = re.sub(r"\x1b\[\d+m", "", written.decode(errors="replace"))
            if interrupt_at and re.search(interrupt_at, shown):
                os.kill(process.pid, signal.SIGINT)
                interrupt_at = None
    os.close(terminal)
    process.wait()
    return process, shown
