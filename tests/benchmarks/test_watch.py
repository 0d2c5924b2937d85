"""``python -m benchmarks watch``: which releases and losses it compares, and what it says."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

import impls
from benchmarks.__main__ import main
from benchmarks.bisect import steps, watch
from benchmarks.compare.packages import CannotBuild
from reports.readers.files import kind
from tests.benchmarks.test_bisect import row


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run watch of a package with four releases. ``gates`` has what each release lacks."""

    def run(verdicts, gates: dict[str, set[str] | str], *words: str) -> tuple[int, str, str]:
        def of_step(step: steps.Step):
            found = verdicts(step.base, step.head)
            if isinstance(found, str):
                raise steps.CannotMeasure(found)
            return found

        def write_gate(release: str, name: str, device: str, file: Path) -> None:
            lacks = gates.get(release, {"index_error"})
            with file.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, ["property", "outcome", "message"])
                writer.writeheader()
                if isinstance(lacks, str):
                    writer.writerow({"property": "values", "outcome": "skipped", "message": lacks})
                    return
                writer.writerow({"property": "values", "outcome": "passed"})
                # What is declared and does not show fails, but the loss has the property.
                shown = {"property": "empty", "outcome": "failed", "message": "[XPASS(strict)] "}
                writer.writerow(shown)
                for name in lacks:
                    writer.writerow({"property": name, "outcome": "deviates", "message": "it"})

        monkeypatch.setattr(steps.Step, "verdicts", of_step)
        monkeypatch.setattr(watch, "run_gate", write_gate)
        monkeypatch.setattr(watch, "published", lambda _: ["1.2", "1.10", "1.9", "1.0", "1.10+cpu"])
        command = ["watch", *(words or ["liger-kernel"]), "--impl", "logits.liger"]
        code = main([*command, "--out", str(tmp_path)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def same(*_: str) -> list[object]:
    return [row("equivalent"), row("right", "error")]


def test_each_release_is_compared_with_the_one_before(run, tmp_path) -> None:
    pairs = []

    def verdicts(base: str, head: str) -> list[object]:
        pairs.append((base.partition("==")[2], head.partition("==")[2]))
        return same()

    code, out, _ = run(verdicts, {})
    assert (code, pairs) == (0, [("1.2", "1.9"), ("1.9", "1.10")])  # the last three
    assert out == f"2 comparisons, 0 of 6 results differ; they are in {tmp_path / 'watch.csv'}\n"
    pairs.clear()
    run(verdicts, {}, "liger-kernel==1.0,1.10", "--last", "9")
    assert pairs == [("1.0", "1.10")]


def test_what_changed_is_said_and_kept(run, tmp_path) -> None:
    def verdicts(base: str, head: str) -> list[object]:
        return [row("regressed"), row("right", "error")] if head.endswith("1.10") else same()

    gates = {"liger-kernel==1.9": {"index_error", "strides"}, "liger-kernel==1.10": set()}
    _, out, _ = run(verdicts, gates)
    where = "liger-kernel {} · logits.liger · "
    assert out.splitlines()[:-1] == [
        where.format("1.2 → 1.9") + "gate lacks more +strides",
        where.format("1.9 → 1.10") + "forward_backward regressed +5.0 % [+4.0 %, +6.0 %]",
        where.format("1.9 → 1.10") + "gate lacks less -index_error -strides",
    ]
    file = tmp_path / "watch.csv"
    assert kind(file) == "watch"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [one["verdict"] for one in rows if one["what"] == "gate"] == ["lacks more", "lacks less"]


def test_a_release_that_cannot_be_measured_is_said_and_the_others_go_on(run) -> None:
    def verdicts(base: str, head: str) -> object:
        return "it does not install" if head.endswith("1.9") else same()

    code, out, _ = run(verdicts, {"liger-kernel==1.9": "it needs another torch"})
    assert code == 0
    assert "1.2 → 1.9 · logits.liger · compare not measured it does not install" in out
    assert "gate not measured liger-kernel==1.9: it needs another torch" in out


def test_the_losses_of_a_package_are_those_that_import_it() -> None:
    assert watch.losses_of("torch") == ["logits.builtin", "linear.builtin", "linear.torch_chunked"]
    with pytest.raises(CannotBuild, match="no loss here uses pytest"):
        watch.losses_of("pytest")
    liger = pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    assert liger
    assert watch.losses_of("liger-kernel") == ["linear.liger", "logits.liger", "logprobs.liger"]


def test_unknown_releases_and_a_single_one_are_a_line(run) -> None:
    for asked, says in [
        ("liger-kernel==1.2,9.9", "liger-kernel has no release 9.9"),
        ("liger-kernel==1.2", "liger-kernel: there are no two releases to compare"),
    ]:
        code, _, errors = run(same, {}, asked)
        assert (code, errors) == (2, f"{says}\n")


def test_a_gate_that_did_not_end_is_said_and_not_kept(tmp_path, monkeypatch) -> None:
    def interrupted(command, **_):
        Path(command[-1]).write_text("half a gate")
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(watch.subprocess, "run", interrupted)
    monkeypatch.setattr(watch, "package_set", lambda _: None)
    file = tmp_path / "gate.csv"
    with pytest.raises(steps.CannotMeasure, match="the gate did not end well"):
        watch.run_gate("a==1", "logits.eager", "cpu", file)
    assert not file.exists()


def test_two_releases_are_the_least(capsys) -> None:
    for last in ("0", "1"):
        with pytest.raises(SystemExit):
            watch.parse(["--last", last])
        assert "--last is at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gate_runs_with_the_release(tmp_path) -> None:
    torch = pytest.importorskip("torch").__version__.partition("+")[0]
    arguments = watch.parse(["--out", str(tmp_path)])
    lacking = watch.lacking(f"torch=={torch}", "logits.builtin", arguments)
    assert lacking == {*impls.load("logits.builtin").support.deviations_on("cpu")}
