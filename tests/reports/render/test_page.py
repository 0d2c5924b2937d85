"""The page: its verdicts, charts, changes and comparisons."""

import re
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from benchmarks import ROOT
from reports.__main__ import main
from reports.analysis.change_points import changes, groups
from reports.readers.files import read
from reports.render import change, page
from reports.render.charts import plots
from tests.reports.rows import (
    MIB,
    REGRESSED,
    as_read,
    loss,
    measured,
    sharded,
    tidy,
    words,
    write_csv,
)


@pytest.fixture(scope="module")
def html(site) -> str:
    return (site / "index.html").read_text()


def test_it_needs_nothing_but_itself(html) -> None:
    found = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Links().feed(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found}
    for _, attributes in found:
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_the_verdict_says_which_and_why_in_each_environment(html) -> None:
    text = words(html)
    assert "linear.logits.fused: the fastest of 5, at 729 ms forward and backward" in text
    assert "(0.95 × builtin, 1.07 × the reference), with a peak of 393 MiB (0.67 × builtin)" in text
    assert "The least memory: linear.chunked_vocab, 182 MiB in 979 ms." in text
    assert "It overwrites its input." in text
    assert text.count("the fastest of 5, at 729") == 2
    assert "gpt2_text · float32 · cpu" in text
    assert "gpt2_text · bfloat16 · NVIDIA H100" in text


def test_as_fast_within_noise_the_lighter_is_taken() -> None:
    rows = [
        *loss("linear.builtin", 100.0, 589, ci_low=99.0, ci_high=101.0),
        *loss("linear.fused", 70.0, 400, ci_low=68.0, ci_high=73.0),
        *loss("linear.cce", 72.0, 300, ci_low=71.0, ci_high=74.0),
        *loss("linear.compiled", 74.0, 200, ci_low=71.0, ci_high=77.0),  # overlaps
        *loss("linear.chunked_vocab", 90.0, 100, ci_low=89.0, ci_high=91.0),
        *loss("linear.wrong", None, 1),
    ]
    text = words(page.render(as_read(rows), [], None, None))
    assert (
        "take linear.cce: as fast within noise as linear.fused (70.00 ms), which holds 400" in text
    )
    assert "The least memory: linear.chunked_vocab, 100 MiB" in text
    assert "No time: linear.wrong." in text


def test_what_cannot_be_compared_is_in_charts_and_verdicts_of_its_own() -> None:
    here = loss("logits.eager", 10.0, 100) + loss("logits.builtin", 20.0, 100)
    differs = {"machine": "b", "device": "d", "torch": "1", "threads": 1, "allocator": "default"}
    differs |= {"hardware": "Xeon"}
    for name, value in differs.items():
        there = [row | {name: value, "impl": "logits.fused", "value": 1.0} for row in here]
        text = words(page.render(as_read([*here, *there]), [], None, None))
        assert "take logits.eager: the fastest of 2" in text
        assert "take logits.fused: the only one that was timed" in text


def test_log_probabilities_have_a_verdict_of_their_own() -> None:
    rows = loss("logprobs.builtin", 20.0, 100) + loss("logprobs.fused", 10.0, 50)
    text = words(page.render(as_read(rows), [], None, None))
    assert "For log-probabilities, take logprobs.fused: the fastest of 2" in text


def test_a_sharded_loss_has_what_it_sends() -> None:
    text = words(page.render(as_read(sharded("cpu × 2")), [], None, None))
    assert "With a vocabulary split across ranks, take sharded.fused" in text
    assert "collectives communication (ms) overlap, 95 % interval (share)" in text
    assert "3.00 3.00 7 - 0.61 to 0.83" in text
    assert "sent (MiB)" not in words(page.render(as_read(measured()), [], None, None))


def test_an_implementation_measured_at_an_older_commit_alone_stays() -> None:
    old = {"commit": "e" * 40, "commit_date": "2025-01-01T00:00:00+00:00"}
    rows = [*loss("logits.builtin", 20.0, 1), *loss("logits.builtin", 20.0, 1, **old)]
    rows += loss("logits.eager", 10.0, 1, **old)
    text = words(page.render(as_read(rows), [], None, None))
    assert "logits.eager" in text
    assert "take logits.builtin: the only one" in text
    assert "take logits.eager" not in text


def test_the_pareto_front_has_every_loss_that_no_other_dominates() -> None:
    points = pd.DataFrame(
        {"total": [3.0, 1.0, 2.0, 2.0, 4.0], "peak_memory": [1.0, 9.0, 5.0, 6.0, 1.0]},
        index=["a", "b", "c", "d", "e"],
    )
    assert plots.pareto(points) == ["b", "c", "a"]


def test_a_flagged_cell_has_its_samples_its_commit_and_its_command(html) -> None:
    text = words(html)
    assert "logits.eager, forward backward" in text
    assert f"{REGRESSED[:10]} 20.03 × reference 30.03 × reference +49.9 %" in text
    assert "30, 30.01, 30.02, 30.03, 30.04, 30.05, 30.06" in text
    assert f"'logits.eager', 'gpt2_text@256', 'float32'\" {REGRESSED[:10]}^!" in text
    assert "logits.fused, forward backward" not in text  # it did not change


def test_a_comparison_has_its_verdict_and_its_samples(html) -> None:
    text = words(html)
    assert re.search(r"logits.eager, forward backward, float32 regressed 10 ms 11 ms 1\.10", text)
    assert "injected slowdown 10." in text


def test_passed_over_files_are_named_on_the_page_and_on_stderr(tmp_path, capsys) -> None:
    write_csv(tmp_path, tidy())
    (tmp_path / "half.json").write_text('{"env_name": ')
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "edge_cases.csv").write_text("")
    (out / "compare.csv").write_text("impl,metric\nlogits.eager,forward\n")
    assert (
        main(
            [
                str(tmp_path / "now.csv"),
                str(tmp_path / "half.json"),
                str(tmp_path / "foreign.csv"),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    text, told = words((out / "index.html").read_text()), capsys.readouterr().err
    for name in ("half.json", "foreign.csv", "edge_cases.csv", "compare.csv"):
        assert f"{name}: " in text
        assert f"{name}: " in told
    assert "4 files or cells were passed over" in text
    assert "logits.eager" in text


def test_unusual_numbers_break_nothing() -> None:
    rows = [
        *loss("logits.inf", None, 1),
        tidy(impl="logits.inf", metric="error", unit="relative", value=float("inf")),
        tidy(impl="logits.zero", metric="forward_backward", value=0.0),
        tidy(impl="nameless", workload="</script><b>", machine="", threads="?", commit_date="?"),
        *loss("logits.<i>", 3.0, 0),
        *loss("logits./a/$long$/path/to/somewhere/else/mine.py", 5.0, 7),
    ]
    rows += [row | {"commit": "d" * 40} for row in rows]
    html = page.render(as_read(rows), ["a < b"], None, None)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "a &lt; b" in html


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_their_share_of_time_and_five_megabytes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    commits, dates = 100, pd.date_range("2020-01-01", periods=100, tz="UTC").astype(str)
    parts = []
    for series in range(1000):
        impl = ["logits.builtin", "logits.reference", *(f"logits.n{n}" for n in range(8))][
            series % 10
        ]
        values = np.exp(rng.normal(0, 0.03, commits)) * np.where(np.arange(commits) < 95, 1, 2)
        of = tidy(impl=impl, workload=f"gpt2_text@{series // 50}", dtype=f"d{series // 10 % 5}")
        parts.append(
            pd.DataFrame(of | {"value": values, "commit": [f"c{n}" for n in range(commits)]})
        )
        parts[-1] = parts[-1].assign(metric="forward_backward", commit_date=dates)
    file, took = tmp_path / "rows.csv", []
    for series in (100, 1000):
        pd.concat(parts[:series]).to_csv(file, index=False)
        start = time.process_time()  # CPU time: other processes do not count
        assert main([str(file), "--out", str(tmp_path)]) == 0
        took.append(time.process_time() - start)
    assert took[1] < 6 * took[0]  # it was 2 to 3 times: most work does not grow
    html = (tmp_path / "index.html").read_text()
    assert len(html) < 5e6
    text = words(html)
    assert "older numbers are not in their charts" in text
    assert f"{change.HISTORIES} of 100 histories are drawn" in text
    assert re.search(r"and \d\d more like it", text)
    assert "logits.n7" in text


def test_falls_are_changes_too_and_no_regressions() -> None:
    rows = [
        tidy(value=10.0 if n < 6 else 8.0, commit=f"c{n}", commit_date=f"2026-01-{n + 1:02}")
        for n in range(12)
    ]
    [[one]] = changes(groups(as_read(rows)), 0.05)
    assert (one.commit, one.last, one.rise) == ("c6", "c5", False)


def test_a_rise_that_is_partly_fixed_is_an_open_regression() -> None:
    rows = [
        tidy(value=value, commit=f"c{n}", commit_date=f"2026-01-{n + 1:02}")
        for n, value in enumerate([10] * 6 + [16] * 6 + [12] * 6)
    ]
    text = words(page.render(as_read(rows), [], None, None))
    opened = text[text.index("Open regressions") : text.index("more change")]
    assert "c6 10 ms 16 ms +60.0 % 99.9 % worse, open, partly fixed in c12" in opened


def test_changes_of_all_dtypes_are_a_row_and_a_few_bytes_are_listed_below(monkeypatch) -> None:
    rows = [
        tidy(impl=impl, dtype=dtype, metric="saved_memory", unit="bytes")
        | {
            "value": 5 * MIB + scale * more * (n > 5),
            "commit": f"c{n}",
            "commit_date": f"2026-01-{n + 1:02}",
        }
        for impl, more in {
            **{"logits.eager": 9 * MIB, "logits.fused": 1024},
            **{"logits.builtin": 0, "logits.compiled": 0},
        }.items()
        for dtype, scale in (("float32", 2), ("bfloat16", 1))
        for n in range(12)
    ]
    text = words(page.render(as_read(rows), [], None, None))
    opened, more = text[text.index("Open regressions") :].split("1 more change: ")
    assert opened.count("logits.eager, saved memory") == 2  # in the table, and above its samples
    assert "and 1 more like it c6 5 MiB 23 MiB +9.0 to +18.0 MiB 100.0 % worse, open" in opened
    assert "logits.fused, saved memory" not in opened
    assert "+1,024 to +2,048 bytes 100.0 % worse, open" in more
    monkeypatch.setattr(change, "CHANGES", 1)
    text = words(page.render(as_read(rows), [], None, None))
    assert "1 of 2 changes are listed, the largest" in text
    assert "+1,024" not in text


def test_readmes_picture_is_of_the_committed_numbers() -> None:
    """Only the words are compared: versions of matplotlib draw the same chart differently."""
    readme = (ROOT / "README.md").read_text()
    [shown] = re.findall(r"!\[[^]]*\]\((\S+\.svg)\)", readme)
    [source] = re.findall(r"`python -m reports (reports/measured/\S+\.csv)`", readme)
    rows, notes = read([ROOT / source])
    assert not notes
    committed = (ROOT / shown).read_text()
    assert words(page.picture(rows)) == words(committed)
    svg = "{http://www.w3.org/2000/svg}"
    style = ElementTree.fromstring(committed).findtext(f"{svg}style")
    assert set(re.findall(r"var\((--\w+)\)", committed)) <= set(re.findall(r"(--\w+):", style))
