"""The side that asks the processes of ``benchmarks.worker``."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from benchmarks.environment import BOUND_THREADS, LARGE_PAGES, PINNED_ALLOCATOR
from benchmarks.revisions import ROOT

COMPILE = b"compile"
ENVIRONMENT = {
    **PINNED_ALLOCATOR,
    **LARGE_PAGES,
    **BOUND_THREADS,
    "PYTHONPATH": str(ROOT),
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of them would not survive a fork
}


class ProcessFailed(RuntimeError):
    """A process that measured a revision raised or died; the message says what it said last."""


class Processes:
    """One process for each role, all forked from one, in a session that Ctrl-C spares."""

    def __init__(self, folder: Path, device: str):
        self.log = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115  closed in close
        self.control, theirs = socket.socketpair()
        self.names: dict[str, str] = {}
        self.channels: dict[str, TextIO] = {}
        command = [sys.executable, "-P", "-m", "benchmarks.worker"]
        with theirs:
            self.server = subprocess.Popen(
                [*command, str(folder), device, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.log,
                cwd=folder,
                env=os.environ | ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, roles: Mapping[str, tuple[str, Path]]) -> None:
        """A fresh process for each role, of a revision: its name, and the folder it is in."""
        self._close_channels()
        for role, (name, folder) in roles.items():
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self.names[role] = name
                self.channels[role] = ours.makefile("rw")
                with suppress(OSError):  # it died: that no answer comes will say so
                    socket.send_fds(self.control, [bytes(folder)], [theirs.fileno()])
                    self.control.recv(1)

    def compile_once(self) -> None:
        """Have those that are forked from now on compile faster."""
        with suppress(OSError):  # it died: that no answer comes will say so
            self.control.send(COMPILE)
            self.control.recv(1)

    def ask(self, role: str, do: str, **request: Any) -> Any:
        """What the role's process answers. Raises ``ProcessFailed``."""
        self._send(role, {"do": do, **request})
        return self._receive(role)

    def ask_all(self, do: str, **request: Any) -> dict[str, Any]:
        """The answers of all, which work at the same time."""
        for role in self.channels:
            self._send(role, {"do": do, **request})
        return {role: self._receive(role) for role in self.channels}

    def close(self) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        self._close_channels()
        self.control.close()
        self.log.close()

    def _send(self, role: str, request: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it died: that no answer comes will say so
            print(json.dumps(request), file=self.channels[role], flush=True)

    def _receive(self, role: str) -> Any:
        try:
            answer = json.loads(self.channels[role].readline() or "null")
        except ConnectionResetError:
            answer = None
        if answer is None:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines() or ["its process died"]
            answer = {"error": lines[-1]}
        if "error" in answer:
            raise ProcessFailed(f"{self.names[role]} cannot be measured: {answer['error']}")
        return answer["answer"]

    def _close_channels(self) -> None:
        for channel in self.channels.values():
            with suppress(OSError):  # what was not sent is not needed
                channel.close()
        self.channels.clear()
