"""``python -m reports regressions``: what a commit changed is in few lines, at its commit."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import ROOT
from reports.__main__ import main
from reports.analysis.series import subjects
from tests.reports.rows import MIB, tidy, write_csv

COMMITS = [f"{n:02}" * 20 for n in range(12)]
# By implementation and metric: the value before, from the fifth commit on, from the ninth on.
HISTORY = {
    ("logits.fused", "saved_memory"): (5384, 5384 + 24 * MIB, 5384 + 24 * MIB),
    ("logits.fused", "peak_memory"): (100 * MIB, 90 * MIB, 90 * MIB),
    ("logits.fused_in_place", "saved_memory"): (5384, 6408, 6408),
    ("linear.fused", "peak_memory"): (197 * MIB, 197 * MIB + 3072, 197 * MIB),
    ("logits.eager", "peak_memory"): (50 * MIB, 50 * MIB, 60 * MIB),
    ("logits.eager", "saved_memory"): (5384, 5384, 5384),
    ("logits.builtin", "saved_memory"): (50 * MIB, 50 * MIB, 50 * MIB),
    ("logits.chunked_vocab", "peak_memory"): (50 * MIB, 40 * MIB, 40 * MIB),
}


def history(folder: Path) -> Path:
    """A file with ``HISTORY`` in float32, and with twice each number in float64."""
    rows = [
        tidy(impl=impl, metric=metric, unit="bytes", value=scale * values[n // 4])
        | {"dtype": dtype, "commit": commit, "commit_date": f"2026-01-{n + 1:02}"}
        for (impl, metric), values in HISTORY.items()
        for dtype, scale in (("float32", 1), ("float64", 2))
        for n, commit in enumerate(COMMITS)
    ]
    return write_csv(folder, *rows)


def test_each_commit_has_its_losses_the_large_changes_first(tmp_path, capsys, monkeypatch) -> None:
    subject = "logits.fused keeps the exponentials of its one pass, which backward scales"
    monkeypatch.setattr("reports.render.by_commit.subjects", lambda: {COMMITS[4]: subject})
    assert main(["regressions", str(history(tmp_path))]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "0404040404 · cpu · logits.fused keeps the exponentials of its one pass, which …",
        "  logits.fused  saved_memory +24.0 to +48.0 MiB  worse, open",
        "  logits.fused  peak_memory -10.0 to -20.0 MiB   better",
        "  below 1 MiB: +1,024 to +6,144 bytes, worse, 2 of 4 open:",
        "    logits.fused_in_place, linear.fused",
        "0808080808 · cpu",
        "  logits.eager  peak_memory +10.0 to +20.0 MiB  worse, open",
        "8 regressions, 6 open, in 16 series of 192 numbers (--all lists each)",
    ]


def test_all_lists_each_rise_of_each_cell(tmp_path, capsys) -> None:
    assert main(["regressions", "--all", str(history(tmp_path))]) == 1
    *listed, last = capsys.readouterr().out.splitlines()
    assert len(listed) == 8
    assert f"float64 · linear.fused · peak_memory: {COMMITS[4]}: 413,138,944 →" in listed[-1]
    assert last == "8 regressions, 6 open, in 16 series of 192 numbers"


def test_ligers_twelve_cells_are_three_lines(capsys) -> None:
    assert main(["regressions", str(ROOT / "tests" / "data" / "liger-history.csv")]) == 1
    printed = capsys.readouterr().out
    ours, others = printed.split("\n\n")
    assert ours.splitlines() == [
        "2845fe8 · NVIDIA H100 80GB HBM3",
        "  fused_linear_cross_entropy liger  forward +67.6 to +160 %          worse, open",
        "  fused_linear_cross_entropy liger  full +68.0 to +157 %             worse, open",
        "  fused_linear_cross_entropy liger  full_memory +3,758 to +3,977 MB  worse, open",
    ]
    assert "…inear_cross_entropy huggingface  full_memory +1,002 MB  fixed in c856fba" in others
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("values", "unit", "told"),
    [
        ([1.0] * 6 + [1.5] * 6, "ms", "forward +50.0 %  worse, open"),
        ([0.0] * 6 + [2.0] * 6, "ms", "forward +2 ms  worse, open"),
        ([4] * 6 + [7] * 6, "count", "forward +3  worse, open"),
        ([1.01**n for n in range(12)], "ms", "forward drift, +11.6 %  worse, open"),
        ([1.0] * 6 + [float("nan")] * 6, "ms", "forward stopped  worse, open"),
    ],
)
def test_each_kind_of_change_has_its_words(values, unit, told, tmp_path, capsys) -> None:
    days = pd.date_range("2026-01-01", periods=12).astype(str)
    rows = [
        tidy(value=value, unit=unit, commit=commit, commit_date=day)
        for value, commit, day in zip(values, COMMITS, days, strict=True)
    ]
    assert main(["regressions", str(write_csv(tmp_path, *rows))]) == 1
    assert f"  logits.eager  {told}\n" in capsys.readouterr().out


def test_subjects_are_those_of_the_clone_parents_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    read = subjects.__wrapped__
    assert read() == {}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for day, subject in ((2, "the parent: größer"), (1, "the child")):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-0{day}T00:00:00Z")
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", subject], check=True)
    assert list(read().values()) == ["the parent: größer", "the child"]
