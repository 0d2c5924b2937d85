"""A process that is asked: what it returns, what it raises, and what is said when it fails."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks import requests


class Uncopied(Exception):
    """An exception that pickle writes and cannot read: its copy lacks an argument."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


def apply(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


def main(fd: str) -> None:
    """What the process of these tests runs."""
    requests.serve(Connection(int(fd)), apply)


def raises_uncopied() -> None:
    raise Uncopied("this", "that")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[requests.Process]:
    found = requests.start(
        "the process", __name__, log=tmp_path / "log", environment={}, limit=60.0
    )
    yield found
    found.close()
    assert found.popen.poll() is not None


def test_what_it_returns_or_raises_is_its_answer(process) -> None:
    process.send("divmod", divmod, 7, 2)
    assert process.receive(60) == (3, 1)
    process.send("int", int, "x")
    answer = process.receive(60)
    assert answer.text.startswith("ValueError: invalid literal")
    assert type(answer.error) is ValueError
    process.send("raises_uncopied", raises_uncopied)
    error = process.receive(60).error
    assert (type(error), str(error)) == (RuntimeError, "Uncopied: this and that")
    process.send("lambda", apply, os.times, "one argument too many")
    assert process.receive(60).text.startswith("TypeError")  # it still answers


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (signal.raise_signal, [signal.SIGKILL], r"^the process died of SIGKILL$"),
        (sys.exit, ["no more room"], r"^the process ended with exit code 1: no more room$"),
        (os._exit, [3], r"^the process ended with exit code 3: it said nothing$"),
        (time.sleep, [60], r"^the process did not answer 'it' within 1 s$"),
    ],
)
def test_one_that_fails_is_named_in_a_line(process, function, arguments, says) -> None:
    process.send("divmod", divmod, 7, 2)  # until it is there
    process.receive(60)
    process.send("it", function, *arguments)
    with pytest.raises(requests.NoAnswer, match=says):
        process.receive(1.0 if function is time.sleep else 60.0)
    process.send("it", divmod, 7, 2)  # to a process that may have died


def test_a_process_that_does_not_start_says_why(tmp_path) -> None:
    found = requests.start("it", "benchmarks.none", log=tmp_path / "log", environment={}, limit=60)
    with pytest.raises(requests.NoAnswer, match=r"^it ended with exit code 1: ModuleNotFoundError"):
        found.receive(60)
    found.close()
