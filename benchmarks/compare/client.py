"""The side that asks the processes of ``benchmarks.compare.server``.

It imports nothing that takes long: the first process starts before this process imports torch.
"""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Self

from benchmarks import requests
from benchmarks.environment.variables import BOUND_THREADS, LARGE_PAGES, PINNED_ALLOCATOR

PROCESS_ENVIRONMENT = {
    **PINNED_ALLOCATOR,
    **LARGE_PAGES,
    **BOUND_THREADS,
    # Neither a pool of processes that compile nor CUDA's runtime survives a fork.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
# Compiling a loss on a busy machine takes a minute or two. Whoever needs longer will not answer.
LIMIT = 600.0  # seconds for an answer


class ProcessFailed(RuntimeError):
    """A process that measured a revision raised, died or did not answer; the message says which."""


class ProcessRaised(ProcessFailed):
    """It raised, and still answers."""


class Process(requests.Process):
    """A process that measures a revision, or that can be forked to do so."""

    def fork(self, name: str = "", path: Iterable[str] = (), here: str = "") -> "Process":
        """A copy of this process, with the folders ``path`` in front of its path, that works in the
        folder ``here``.

        A fork has torch, the tensors and the compiled losses of this process. A process that is
        started anew imports and compiles for seconds (docs/experiments, 0019), and its heap lies
        elsewhere, which changes its times by percents (0008).
        """
        ours, theirs = requests.pair(LIMIT)
        with theirs:
            self.ask_later("fork", path=list(path), here=here)
            with suppress(OSError):  # it died: ``answer`` says so
                send_handle(self.channel, theirs.fileno(), 0)
        self.answer()
        return Process(name or self.name, ours, self.log)

    def ask(self, do: str, **request: Any) -> Any:
        """Its answer. Raises ``ProcessFailed``."""
        self.ask_later(do, **request)
        return self.answer()

    def ask_later(self, do: str, **request: Any) -> None:
        """Send the request only; ``answer`` waits for the answer."""
        self.send(do, do, request)

    def answer(self) -> Any:
        try:
            answer = self.receive(LIMIT)
        except requests.NoAnswer as error:
            raise ProcessFailed(str(error)) from None
        if isinstance(answer, requests.Raised):
            # Not the exception itself: its class may be of the other revision's impls.
            raise ProcessRaised(f"{self.name} cannot be measured: {answer.text}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Process):
    """The first process, from which all others are forked, and its folder.

    Unless it measures ``on_cuda``, it sees no GPU: compiling for the CPU would start CUDA too, and
    a process that has started CUDA cannot be forked. ``packages`` is a folder of packages that
    replace those that are installed here.
    """

    def __init__(self, on_cuda: bool, packages: Path | None = None) -> None:
        self.on_cuda = on_cuda
        self.temporary = tempfile.TemporaryDirectory(
            prefix="cross-entropy-", ignore_cleanup_errors=True
        )
        self.folder = Path(self.temporary.name)
        started = requests.start(
            "impls",
            "benchmarks.compare.server",
            self.folder,
            log=self.folder / "log",
            environment=PROCESS_ENVIRONMENT | ({} if on_cuda else {"CUDA_VISIBLE_DEVICES": ""}),
            limit=LIMIT,
            folder=self.folder,
            packages=packages,
        )
        super().__init__(started.name, started.channel, started.log, started.popen)

    def close(self) -> None:
        super().close()
        self.temporary.cleanup()


def ask_all(processes: Iterable[Process], do: str, **request: Any) -> list[Any]:
    """The answers of all processes, which work at the same time. Raises ``ProcessFailed``."""
    asked = list(processes)
    for process in asked:
        process.ask_later(do, **request)
    return [process.answer() for process in asked]
