"""The side that asks the processes of ``benchmarks.compare.server``.

It imports nothing that takes long: the first of them begins before this one has imported torch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from benchmarks import ROOT
from benchmarks.environment.variables import (
    BOUND_THREADS,
    LARGE_PAGES,
    PINNED_ALLOCATOR,
    first_on_path,
)

ENVIRONMENT = {
    **PINNED_ALLOCATOR,
    **LARGE_PAGES,
    **BOUND_THREADS,
    # Neither a pool of processes that compile nor CUDA's runtime would survive a fork.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


# Compiling a loss on a busy machine takes a minute or two. Whoever needs longer will not answer.
LIMIT = 600.0  # seconds of an answer


class ProcessFailed(RuntimeError):
    """A process that measured a revision raised, died or did not answer; the message says which."""


class Process:
    """One that does what it is asked, and answers."""

    def __init__(self, name: str, channel: socket.socket, log: TextIO):
        self.name, self.channel, self.log = name, channel, log
        self.asked = ""  # last
        self.answers = channel.makefile()

    def fork(self, name: str = "", source: Path | None = None) -> "Process":
        """A process as this one is; with a ``source``, it has the ``impls`` in that folder."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.send("fork", [theirs.fileno()], source=source and str(source))
        self.receive()
        return Process(name or self.name, ours, self.log)

    def ask(self, do: str, **request: Any) -> Any:
        """Its answer. Raises ``ProcessFailed``."""
        self.send(do, **request)
        return self.receive()

    def send(self, do: str, fds: Sequence[int] = (), **request: Any) -> None:
        message = json.dumps({"do": do, **request}).encode()
        self.asked = do
        self.channel.settimeout(LIMIT)
        with suppress(OSError):  # it died: that no answer comes will say so
            socket.send_fds(self.channel, [message], fds)

    def receive(self) -> Any:
        try:
            answer = json.loads(self.answers.readline() or "null")
        except TimeoutError:
            raise ProcessFailed(
                f"{self.name} did not answer {self.asked!r} within {LIMIT:g} s"
            ) from None
        except ConnectionResetError:
            answer = None
        if answer is None:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines() or ["its process died"]
            answer = {"error": lines[-1]}
        if "error" in answer:
            raise ProcessFailed(f"{self.name} cannot be measured: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        self.answers.close()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Process):
    """The first, from which all others are forked, in a session that Ctrl-C spares; its folder.

    Unless it measures ``on_cuda`` it sees no GPU: to compile for the CPU would begin CUDA too, and
    a process that has begun CUDA cannot be forked.
    """

    def __init__(self, on_cuda: bool) -> None:
        self.temporary = tempfile.TemporaryDirectory(
            prefix="cross-entropy-", ignore_cleanup_errors=True
        )
        self.folder = Path(self.temporary.name)
        log = tempfile.TemporaryFile("w+", dir=self.folder)  # noqa: SIM115  closed in close
        ours, theirs = socket.socketpair()
        hidden = {} if on_cuda else {"CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-P", "-m", "benchmarks.compare.server"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(self.folder), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.folder,
                env=os.environ | ENVIRONMENT | first_on_path(ROOT) | hidden,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        super().__init__("impls", ours, log)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        super().close()
        self.log.close()
        self.temporary.cleanup()


def ask_all(processes: Iterable[Process], do: str, **request: Any) -> list[Any]:
    """The answers of all, which work at the same time. Raises ``ProcessFailed``."""
    asked = list(processes)
    for process in asked:
        process.send(do, **request)
    return [process.receive() for process in asked]
