"""Leaves out a loss that raises while it is measured, and lets the others go on."""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.measure import memory, timers
from benchmarks.ranks import torchrun


class DeviceLost(Exception):
    """An error after which this process cannot use its GPU, such as an illegal memory access."""


class Failures:
    """The losses that raised on a device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.names: set[str] = set()

    def attempt(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """What ``run(*arguments)`` returns; None if it raises, or if ``name`` has raised before.

        With several ranks, the error is raised again: the other ranks wait for this rank in a
        collective. Raises ``DeviceLost``.
        """
        if name in self.names:
            return None
        try:
            return run(*arguments)
        except Exception as error:
            if torchrun.world_size() > 1:
                raise
            self.names.add(name)
            what = f"{type(error).__name__}: {first_line(error)}"
            print(f"{name} failed, it is left out from here on: {what}", file=sys.stderr)
        # Not in the except block, where the error's traceback holds what the call allocated.
        try:
            timers.synchronize(self.device)
            memory.free_cache(self.device)
        except RuntimeError as error:  # an error that is raised twice is there to stay
            raise DeviceLost(f"after {name} the GPU cannot be used: {first_line(error)}") from error
        return None


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
