"""Tables: their rows, their order and their multiples."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from reports.analysis.selection import measured, newest
from reports.analysis.series import groups
from reports.render import page, tables, terminal
from tests.reports.rows import as_read, sharded, tidy, words


@pytest.mark.parametrize("metric", ["forward", "backward", "forward_backward"])
def test_the_fastest_comes_first(metric: str) -> None:
    times = {"logits.builtin": 2.0, "logits.chunked_vocab": 3.0, "logits.eager": 1.0}
    rows = as_read([tidy(impl=name, metric=metric, value=ms) for name, ms in times.items()])
    assert list(tables.comparison(rows).index) == sorted(times, key=times.__getitem__)


def test_table_shows_the_newest_commit_of_each_machine() -> None:
    rows = as_read(
        [
            tidy(source="asv", commit="old", commit_date="2026-01-01T00:00:00+00:00"),
            tidy(source="asv", commit="new", commit_date="2026-01-02T00:00:00+01:00"),
            tidy(source="asv", commit="only", machine="other"),
        ]
    )
    assert newest(rows)["commit"].tolist() == ["new", "only"]


def test_an_older_commit_in_another_file_is_not_shown_beside_the_newest() -> None:
    """A committed history is such a file."""
    older = {"source": "history.csv", "commit": "old", "commit_date": "2026-01-01"}
    history = as_read([tidy(**older), tidy(**older, impl="logits.gone")])
    now = as_read([tidy(source="asv", commit="new", commit_date="2026-01-02")])
    rows = pd.concat([history, now], ignore_index=True)
    assert newest(rows[rows["impl"] != "logits.gone"])["commit"].tolist() == ["new"]
    assert newest(rows)["commit"].tolist() == ["old", "old", "new"]  # a loss that is only there


def test_different_runs_are_not_mixed() -> None:
    rows = as_read(
        [
            tidy(source="asv", threads=2),
            tidy(source="asv", threads=1, impl="logits.builtin"),
            tidy(source="asv", threads=2, allocator="default", impl="logits.builtin"),
        ]
    )
    assert len(list(tables.sections(rows))) == 3


def test_a_sharded_loss_is_compared_with_the_reference_of_as_many_ranks() -> None:
    rows = as_read(sharded("cpu × 2") + sharded("cpu × 4"))
    (first, _, table), (second, *_) = tables.sections(rows)
    assert first.startswith("sharded · gpt2_text · float32 · cpu × 2")
    assert second.endswith("cpu × 4")
    of = table.loc["sharded.fused"]
    assert of["forward_backward (ms)"].split() == ["15.00", "-", "1.50"]
    assert of["sent (MiB)"].split() == ["3.00", "-", "3.00"]
    assert of["collectives (count)"].split()[0] == "7.00"
    assert of["overlap (share)"] == "0.61 to 0.83"


def test_a_total_is_of_an_upstream_gradient_of_one_where_all_have_it() -> None:
    of = {"impl": "logits.eager", "metric": "forward_backward", "value": 3.0}
    unit = of | {"metric": "forward_backward_unit", "value": 2.0}
    both = as_read([tidy(**of), tidy(**unit)])
    assert measured(both)["total"].tolist() == [2.0]
    other = as_read([tidy(**of), tidy(**unit), tidy(**of | {"impl": "logits.builtin"})])
    assert measured(other)["total"].tolist() == [3.0, 3.0]


def test_an_overlap_that_says_nothing_is_not_shown() -> None:
    assert tables.interval(-2.62, 1.06) == "not measurable here"
    assert tables.interval(-0.19, 0.47) == "-0.19 to 0.47"


def test_a_noisy_time_is_marked_and_never_the_fastest(capsys) -> None:
    """In the terminal, in Markdown, on the page, and by pick."""
    rows = [
        tidy(impl=impl, metric="forward_backward", value=value, noisy=noisy, samples="1 1 1")
        for impl, value, noisy in (("logits.eager", 5.0, 1), ("logits.fused", 6.0, 0))
    ]
    rows += [tidy(impl="logits.wrong", metric="error", unit="relative", value=1.0)]
    rows += [tidy(impl="logits.fused", metric="peak_memory", unit="bytes", value=8 * 2**20)]
    frame = as_read(rows)
    tables.show(frame)
    shown = capsys.readouterr().out
    assert "~5.00" in shown
    assert "~6.00" not in shown
    assert "did not pass its checks" in shown
    assert list(tables.comparison(frame).index) == [
        *("logits.eager (noisy)", "logits.fused", "logits.wrong")
    ]
    text = words(page.render(frame, [], None, None))
    assert "logits.eager noisy: 5.00" in text
    assert "logits.fused: the only one that was timed" in text


def test_terminal_summary_and_page_take_a_ratio_within_rounds(capsys) -> None:
    """The machine became three times slower in the middle; each round shows twice the builtin."""
    base = (1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0)
    samples = {"logits.builtin": base, "logits.reference": base}
    samples["logits.eager"] = tuple(2 * one for one in base)
    medians = {"logits.builtin": 1.0, "logits.reference": 1.0, "logits.eager": 6.0}
    rows = [
        tidy(impl=impl, metric="forward_backward", value=medians[impl], samples=taken)
        for impl, taken in samples.items()
    ]

    def shown(rows: list[dict[str, object]]) -> list[list[str]]:
        """Both multiples of logits.eager: in the terminal, in Markdown and on the page."""
        frame = as_read(rows)
        tables.show(frame)
        told = (
            capsys.readouterr().out,
            tables.render(frame),
            words(page.render(frame, [], None, None)),
        )
        found = [
            re.search(r"eager\W+6\.00.*? (\d\.\d\d)(?: +0\.24)? +(\d\.\d\d)\b", one)
            for one in told[:2]
        ]
        found.append(re.search(r"eager 6\.00 12\.00 to 13\.00 (\S+) (\S+)", told[2]))
        return [list(one.groups()) for one in found]

    assert shown(rows) == 3 * [["2.00", "2.00"]]
    without = [row | {"samples": ""} for row in rows]
    assert shown(without) == 3 * [["6.00", "6.00"]]


def test_the_terminal_marks_each_multiple_of_a_noisy_reference(capsys) -> None:
    rows = [
        tidy(impl=f"logits.{name}", metric="forward_backward", value=ms, samples=6 * f"{ms} ")
        | {"noisy": int(name == "reference")}
        for name, ms in (("reference", 2.0), ("fused", 5.0), ("builtin", 10.0))
    ]
    tables.show(as_read(rows))
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split()[1:5] for line in lines if len(line.split()) > 4}
    assert cells["reference"] == ["~2.00", "0.20", "-", "1.00"]
    assert cells["fused"] == ["5.00", "0.50", "0.06", "~2.50"]
    assert cells["builtin"] == ["10.00", "1.00", "-", "~5.00"]


def test_the_interval_of_a_gpu_is_a_gpus(capsys) -> None:
    times = {"logits.builtin": 2.0, "logits.fused": 1.0}
    rows = [
        tidy(impl=impl, metric="forward_backward", value=ms, samples=6 * f"{ms} ")
        | {"device": "NVIDIA H100 80GB HBM3"}
        for impl, ms in times.items()
    ]
    tables.show(as_read(rows))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "fused" in line]
    assert line.split()[1:4] == ["1.00", "0.50", "0.00"]


@pytest.mark.parametrize("width", range(60, 100))
def test_the_terminal_cuts_no_number(width: int) -> None:
    samples = 6 * "20.5 "
    rows = [
        tidy(impl=f"logits.{name}", metric=metric, value=20.5, samples=samples)
        for name in ("builtin", "reference", "native_in_place")
        for metric in ("forward", "forward_backward", "forward_backward_unit")
    ]
    rows += [row | {"metric": "error", "unit": "relative", "value": 2.8e-8} for row in rows[:2]]
    rows += [row | {"metric": "peak_memory", "unit": "bytes"} for row in rows[:2]]
    console = Console(width=width, file=io.StringIO())
    terminal.show(as_read(rows), console)
    assert "…" not in console.file.getvalue()


def test_numbers_of_different_texts_are_not_mixed() -> None:
    rows = as_read([tidy(text="aaaa"), tidy(text="bbbb", impl="logits.builtin")])
    assert len(list(tables.sections(rows))) == 2
    assert len(groups(rows)) == 2
    assert len(tables.wide(rows.assign(impl="logits.eager"))) == 2
