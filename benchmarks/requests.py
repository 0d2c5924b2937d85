"""Processes that answer requests: how to start and ask them, and what to say if one fails.

A request and its answer are pickled, and cross a socket pair. ``benchmarks.compare`` asks a tree of
forks this way, ``benchmarks.ranks`` a group of ranks. This module imports nothing that takes long:
``compare`` starts its first process before it imports torch.
"""

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.environment.variables import first_on_path

GRACE = 10.0  # seconds in which a process ends after it closed its channel


@dataclass(frozen=True)
class Raised:
    """An answer: what the process raised."""

    text: str  # "ValueError: what it says"
    pickled: bytes | None  # the exception, if pickle can copy it

    @property
    def error(self) -> Exception:
        if self.pickled is None:
            return RuntimeError(self.text)
        error: Exception = pickle.loads(self.pickled)
        return error


class NoAnswer(RuntimeError):
    """A process died, or did not answer in time; the message says which process, and what."""


class Process:
    """The asking side. Without ``popen``, the process is a fork of another one."""

    def __init__(
        self,
        name: str,
        channel: Connection,
        log: Path,
        popen: subprocess.Popen[bytes] | None = None,
    ):
        self.name, self.channel, self.log, self.popen = name, channel, log, popen
        self.asked, self.asked_at = "start", time.monotonic()

    def send(self, what: str, *request: Any) -> None:
        """Send a request. ``what`` is its name in messages."""
        self.asked, self.asked_at = what, time.monotonic()
        with suppress(OSError):  # it died: ``receive`` says so
            self.channel.send_bytes(pickle.dumps(request))

    def receive(self, limit: float) -> Any:
        """The answer, which may be ``Raised``. Raises ``NoAnswer`` after ``limit`` seconds."""
        try:
            if not self.channel.poll(limit):
                raise NoAnswer(f"{self.name} {self.lateness()}")
            return pickle.loads(self.channel.recv_bytes())
        except (EOFError, OSError):
            raise NoAnswer(f"{self.name} {self.end()}") from None

    def lateness(self) -> str:
        seconds = time.monotonic() - self.asked_at
        return f"did not answer {self.asked!r} within {seconds:.0f} s"

    def end(self) -> str:
        """How the process ended. It has closed its channel."""
        code = None
        if self.popen is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self.popen.wait(GRACE)
        if code is not None and code < 0:
            return f"died of {signal.Signals(-code).name}"
        lines = self.log.read_text().strip().splitlines() or ["it said nothing"]
        return f"died: {lines[-1]}" if code is None else f"ended with exit code {code}: {lines[-1]}"

    def close(self) -> None:
        """Close the channel. Kill the process and its forks, unless it is a fork itself."""
        if self.popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        self.channel.close()


def start(
    name: str,
    module: str,
    *arguments: Any,
    log: Path,
    environment: Mapping[str, str],
    limit: float,
    folder: Path | None = None,
    packages: Path | None = None,
) -> Process:
    """Run ``main(*arguments, FD)`` of ``module``, which serves the socket FD, in a new session.

    Ctrl-C spares a session of its own. What the process prints goes to ``log``. The packages
    in the folder ``packages`` replace this process's packages of the same names.
    """
    # Not "-m": the module would be "__main__" then, and be imported again by its name to unpickle.
    code = f"import sys; from {module} import main; main(*sys.argv[1:])"
    ours, theirs = pair(limit)
    fd = theirs.fileno()
    with theirs, log.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *map(str, arguments), str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=os.environ | environment | first_on_path(ROOT, *filter(None, [packages])),
            pass_fds=[fd],
            start_new_session=True,
        )
    return Process(name, ours, log, popen)


def pair(limit: float) -> tuple[Connection, Connection]:
    """Our end of a channel, and theirs. Sending takes ``limit`` seconds at most: a process that is
    stopped reads nothing."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(limit), 0))
    return Connection(ours.detach()), Connection(theirs.detach())


def serve(channel: Connection, act: Callable[..., Any]) -> None:
    """Answer each request with what ``act(*request)`` returns or raises, until the channel ends."""
    with suppress(EOFError, ConnectionError):
        while True:
            channel.send_bytes(answer(act, channel.recv_bytes()))


def answer(act: Callable[..., Any], request: bytes) -> bytes:
    try:
        return pickle.dumps(act(*pickle.loads(request)))
    except Exception as error:
        copy = None
        with suppress(Exception):  # pickle cannot copy every exception
            pickle.loads(sent := pickle.dumps(error))
            copy = sent
        return pickle.dumps(Raised(f"{type(error).__name__}: {error}", copy))
