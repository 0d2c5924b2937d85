"""The progress bar: on a terminal, in a log, and after Ctrl-C."""

import sys
from types import SimpleNamespace

from benchmarks.environment import progress
from benchmarks.environment.progress import track
from tests.benchmarks.terminal import run_on_terminal

SCRIPT = """
import sys, threading, time
from benchmarks.environment.progress import track

for n in track(range(3), "rounds", name="loss [/b]{}".format):
    print(f"said [{n}]", file=sys.stderr)
    print(f"{n}, {threading.active_count()} thread")
    if n == 1 and "wait" in sys.argv:
        time.sleep(60)
"""
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


def test_a_bar_has_the_name_and_what_is_done_and_lines_go_above_it(tmp_path) -> None:
    with (tmp_path / "stdout").open("w") as stdout:
        _, shown = run_on_terminal([sys.executable, "-c", SCRIPT], stdout=stdout)
    assert (tmp_path / "stdout").read_text() == "0, 1 thread\n1, 1 thread\n2, 1 thread\n"
    for n in range(3):
        assert f" {n}/3 " in shown
        assert f"loss [/b]{n}" in shown
        assert f"said [{n}]\r\nrounds" in shown
    assert shown.count(HIDE) == shown.count(SHOW) == 1
    assert shown.rstrip().endswith("\x1b[2K")  # the bar is gone in the end


def test_ctrl_c_gives_the_cursor_back() -> None:
    _, shown = run_on_terminal([sys.executable, "-c", SCRIPT, "wait"], interrupt_at="said .1.")
    assert shown.index(SHOW) < shown.index("KeyboardInterrupt")


def test_a_log_has_a_line_now_and_then(monkeypatch, capsys) -> None:
    """Here an item takes four seconds."""
    seconds = iter(range(0, 400, 4))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    assert list(track(range(8), "rounds", name="loss {}".format)) == list(range(8))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "rounds: 2 of 8 done, 36 s left, loss 2",
        "rounds: 5 of 8 done, 14 s left, loss 5",
    ]
    assert list(track(iter("abcd"), "calls")) == list("abcd")
    assert capsys.readouterr().err == "calls: 2 done\n"
