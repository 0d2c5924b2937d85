"""``python -m benchmarks history``: which losses it measures of which commits, and its CSV."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.history import asv, cli
from benchmarks.side_by_side import rounds
from reports.readers.files import read

EAGER = "impls/logits/eager.py"


@pytest.fixture
def commits(monkeypatch):
    """Four commits: the first adds this ``impls``, the second edits eager, the others a README."""
    later = (EAGER, "impls/README.md")
    edits = {"first": (), "second": (EAGER,), "third": later, "fourth": later}

    def export(revision, folder):
        shutil.copytree(ROOT / "impls", folder / "impls")
        for file in edits[revision]:
            with (folder / file).open("a") as opened:
                opened.write("\nEDITED = True\n")

    monkeypatch.setattr(cli, "export", export)
    return list(edits)


def test_each_commit_is_measured_for_the_losses_that_it_changed(commits, tmp_path) -> None:
    names = cli.runnable("cpu")
    first, second, third, fourth = cli.changes(commits, tmp_path, measure_all=False, among=names)
    assert first.losses == names
    assert second.losses == names  # the first commit's losses, a second time
    assert third.losses == ["logits.compiled", "logits.eager"]  # compiled compiles eager
    assert fourth.losses == []


def test_named_commits_are_measured_whole_and_named_losses_alone(commits, tmp_path) -> None:
    *_, third = cli.changes(commits, tmp_path, measure_all=True, among=["linear.fused"])
    assert third.losses == ["linear.fused"]


def test_an_old_commit_has_todays_registry_and_what_its_losses_import(
    tmp_path, monkeypatch
) -> None:
    """The suites call today's registry. The first commits had another one, and other names."""

    def export(revision, folder):
        shutil.copytree(ROOT / "impls" / "logits", folder / "impls" / "logits")
        (folder / "impls" / "loss.py").write_text(f"UNTRACEABLE = {revision!r}\n")
        with (folder / EAGER).open("a") as eager:
            eager.write("\nfrom impls.loss import UNTRACEABLE\n")

    monkeypatch.setattr(cli, "export", export)
    commits = cli.changes(["a", "b", "c"], tmp_path, measure_all=False, among=["logits.eager"])
    _, second, third = commits
    assert second.losses == ["logits.eager"]  # a second time
    assert third.losses == []  # what differs is the commit's loss.py alone
    code = "import impls; print(impls.load('logits.eager').options, impls.logits.eager.UNTRACEABLE)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(second.folder)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.endswith("b\n"), run.stderr


def test_what_is_done_is_left_out_and_builtin_shows_whether_the_machine_moved(tmp_path) -> None:
    commits = [
        cli.Commit("first", ["logits.eager", "logits.fused"], tmp_path),
        cli.Commit("second", ["logits.eager"], tmp_path),
        cli.Commit("third", [], tmp_path),
    ]
    [left] = cli.unmeasured(commits, {("first", "logits.eager"), ("second", "logits.eager")})
    assert left == cli.Commit("first", ["logits.builtin", "logits.fused"], tmp_path)


@pytest.mark.slow
def test_numbers_of_a_commit_are_kept_and_not_measured_again(tmp_path, monkeypatch, capsys) -> None:
    if missing := cli.why_not():
        pytest.skip(missing)
    monkeypatch.setenv("BENCHMARK_PROFILE", "rehearsal")
    command = ["history", "HEAD", "--impl", "logits.eager", "--out", str(tmp_path / "rows.csv")]
    code = main(command)
    said = capsys.readouterr().out
    assert code == 0, said
    rows, notes = read([tmp_path / "rows.csv"])
    assert notes == []
    assert {*rows["impl"]} == {"logits.eager", "logits.builtin", "logits.reference"}
    assert {*rows["commit"]} == {cli.resolve("HEAD")}
    assert {*rows["allocator"]} == {"pinned"}
    cell = rows[rows["impl"] == "logits.eager"].set_index("metric")
    assert cell.loc["forward_backward_multiple", "value"] > 1
    assert len(cell.loc["forward_backward", "samples"]) >= rounds.ROUNDS[0]
    assert main(command) == 0
    assert "0 commits were added" in capsys.readouterr().out
    pd.testing.assert_frame_equal(read([tmp_path / "rows.csv"])[0], rows)


def test_a_commit_that_gives_no_numbers_is_said_and_the_others_go_on(
    commits, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(cli, "why_not", lambda: "")
    monkeypatch.setattr(cli, "resolve", lambda revision: revision)
    monkeypatch.setattr(asv, "asv", lambda log, *_, **__: log.write(b"why\n"))
    out = tmp_path / "rows.csv"
    assert main(["history", *commits, "--impl", "logits.eager", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert said.count("failed: asv gave no numbers; it said: why") == len(commits)
    assert "0 commits were added" in said


def test_an_unknown_revision_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli, "why_not", lambda: "")
    assert main(["history", "no-such-revision", "--out", str(tmp_path / "rows.csv")]) == 2
    assert capsys.readouterr().err == "no revision 'no-such-revision' in this clone\n"


def test_without_git_the_reason_is_the_last_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["history", "--out", str(tmp_path / "rows.csv")]) == cli.options.SKIPPED
    assert capsys.readouterr().out == "a history is read from git, and there is no git here\n"
