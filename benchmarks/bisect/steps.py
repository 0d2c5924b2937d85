"""One step: ``compare`` in a process of its own. Its raw pairs are kept, for the next run too."""

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.compare.packages import key
from benchmarks.compare.sources import SUFFIXES
from impls.loss import INTERPRETED

DECIDES = (0, 1, 3)  # the exit codes with which ``compare`` has measured


def digest(*arguments: str) -> str:
    """The name of a kept result.

    It changes with the arguments, the installed packages, the code of ``impls`` and of a file among
    the arguments, and with Triton's interpreter.
    """
    files = sorted(file for file in (ROOT / "impls").rglob("*.*") if file.suffix in SUFFIXES)
    files += [Path(one) for one in arguments if one.endswith(".py") and Path(one).is_file()]
    code = [file.read_text(encoding="utf-8") for file in files]
    return key(["\0".join([*arguments, str(INTERPRETED), *code])])


def words(options: Mapping[str, object]) -> tuple[str, ...]:
    """Options and their values as words of a command line, without the options that are None."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    return tuple(word for option in given.items() for word in option)


class CannotMeasure(LookupError):
    """A side cannot be installed, imported or run. The message is one line."""


@dataclass(frozen=True)
class Step:
    """A comparison of two targets: the arguments of ``compare``, and the folder of its pairs."""

    base: str
    head: str
    options: tuple[str, ...]
    folder: Path

    @property
    def arguments(self) -> list[str]:
        return ["compare", self.base, self.head, *self.options]

    @property
    def command(self) -> str:
        """What a user types to see the whole table."""
        return shlex.join(["python", "-m", "benchmarks", *self.arguments])

    @functools.cached_property
    def file(self) -> Path:
        """The CSV of the pairs."""
        return self.folder / f"{digest(*self.arguments)}.csv"

    def verdicts(self) -> list[Any]:
        """The rows of verdicts, measured now or by an earlier run. Raises ``CannotMeasure``."""
        import pandas as pd

        from reports.analysis.verdicts import PAIR_TYPES, verdicts

        if not self.file.exists():
            self.measure()
        return list(verdicts(pd.read_csv(self.file, **PAIR_TYPES)).itertuples())

    def measure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        command = [sys.executable, "-m", "benchmarks", *self.arguments, "--out", str(part)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stderr is not None
        said = ""
        with process:
            for line in process.stderr:  # such as how far the installation of a package is
                print(line, end="", file=sys.stderr, flush=True)
                said = line.strip() or said
        if process.returncode not in DECIDES:
            raise CannotMeasure(said or f"compare ended with {process.returncode}")
        if not part.stat().st_size:
            raise CannotMeasure("nothing was measured")
        part.rename(self.file)
