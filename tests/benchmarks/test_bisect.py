"""``python -m benchmarks bisect``: its search, its candidates, and what it says."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.bisect import candidates, cli, steps
from benchmarks.compare.packages import CannotBuild
from benchmarks.compare.targets import UnknownRevision
from tests.benchmarks.compare.test_packages import PACKAGE, git, index, losses, wheel

__all__ = ["index"]  # a fixture


@pytest.mark.parametrize("count", range(2, 10))
def test_the_search_ends_at_the_last_good_and_the_first_bad(count: int) -> None:
    for first_bad in range(1, count):
        asked = []

        def judge(number: int, first_bad=first_bad, asked=asked) -> str:
            asked.append(number)
            return "bad" if number >= first_bad else "good"

        assert cli.search(count, judge) == (first_bad - 1, first_bad)
        assert len(asked) == len({*asked}) <= (count - 1).bit_length()
        assert not {0, count - 1} & {*asked}  # what is known


@pytest.mark.parametrize("skipped", range(1, 2**5))
def test_what_is_skipped_may_lie_between_good_and_bad_and_nothing_else(skipped: int) -> None:
    for first_bad in range(1, 7):

        def judge(number: int, first_bad=first_bad) -> str:
            if skipped >> (number - 1) & 1:
                return "skipped"
            return "bad" if number >= first_bad else "good"

        good, bad = cli.search(7, judge)
        assert good < first_bad <= bad
        assert all(judge(number) == "skipped" for number in range(good + 1, bad))


def releases(*versions: str, pre: bool = False) -> str:
    return " ".join(one.partition("==")[2] for one in candidates.releases(PACKAGE, *versions))


def test_releases_are_in_the_order_of_versions(index) -> None:
    for version in ("1.9", "1.10", "2.0rc1", "1.2", "2.0"):
        wheel(index, version)
    assert releases("1.2", "2.0") == "1.2 1.9 1.10 2.0"
    assert releases("1.9", "2.0rc1") == "1.9 1.10 2.0rc1"
    for good, bad, says in [
        ("1.3", "2.0", "has no release 1.3; the last are 1.2, 1.9, 1.10, 2.0"),
        ("2.0", "1.2", "2.0 comes after 1.2"),
        ("main", "1.2", "with --releases, GOOD and BAD are versions"),
    ]:
        with pytest.raises(CannotBuild, match=says):
            candidates.releases(PACKAGE, good, bad)
    with pytest.raises(CannotBuild, match="no index has a package nobody_has"):
        candidates.releases("nobody_has", "1", "2")


@pytest.fixture
def repo(tmp_path):
    """A clone whose line of first parents is one, two, merge, three; side is merged."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name in ("one", "two"):
        git(folder, "commit", "-q", "--allow-empty", "-m", name)
        git(folder, "tag", name)
    git(folder, "checkout", "-q", "-b", "side")
    git(folder, "commit", "-q", "--allow-empty", "-m", "side")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "merge", "side")
    git(folder, "commit", "-q", "--allow-empty", "-m", "three")
    return folder


def test_commits_are_those_of_the_first_parents(repo) -> None:
    found = candidates.commits("one", "main", repo)
    assert [candidates.subject(one, repo) for one in found] == ["one", "two", "merge", "three"]
    for good, bad, says in [
        ("main", "one", "main is not among the first parents of one"),
        ("side", "main", "side is not among the first parents of main"),
        ("no-such", "main", "no revision 'no-such' in "),
    ]:
        with pytest.raises(UnknownRevision, match=says):
            candidates.commits(good, bad, repo)


def row(verdict: str, metric: str = "forward_backward", **others: object) -> SimpleNamespace:
    unit = {"error": "of its budget", "peak_memory": "bytes"}.get(metric, "ms")
    numbers = {"ratio": 1.05, "low": 1.04, "high": 1.06, "base": 10.0, "head": 11.0}
    of = {"metric": metric, "unit": unit, "dtype": "float32", "verdict": verdict}
    return SimpleNamespace(**of | numbers | others)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run bisect of releases a==0, …; ``verdicts`` gives the rows of a release, or an error."""

    def run(count: int, verdicts, *options: str) -> tuple[int, list[str], str]:
        def of_step(step: steps.Step) -> list[SimpleNamespace]:
            found = verdicts(int(step.head[3:]), step)
            if isinstance(found, str):
                raise steps.CannotMeasure(found)
            return [found] if isinstance(found, SimpleNamespace) else found

        monkeypatch.setattr(steps.Step, "verdicts", of_step)
        names = [f"a=={number}" for number in range(count)]
        monkeypatch.setattr(candidates, "releases", lambda *_: names)
        command = ["bisect", "0", "9", "--releases", "a", "--impl", "logits.eager", *options]
        code = main([*command, "--out", str(tmp_path)])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


def test_the_culprit_is_named_with_its_own_change(run) -> None:
    code, out, errors = run(8, lambda head, _: row("regressed" if head >= 5 else "equivalent"))
    assert code == 0
    assert out[0] == "7 releases after a==0: about 4 steps"
    assert out[1] == "a==7: bad, regressed +5.0 % [+4.0 %, +6.0 %]"
    assert out[-1] == (
        "a==5 is the first that is bad. forward_backward against a==4: "
        "regressed +5.0 % [+4.0 %, +6.0 %]"
    )
    assert (
        "python -m benchmarks compare a==4 a==5 --impl logits.eager --pass forward_back" in errors
    )


def test_a_release_that_cannot_be_measured_is_skipped_with_its_reason(run) -> None:
    code, out, _ = run(4, lambda head, _: "it is broken" if head < 3 else row("regressed"))
    assert code == 1
    assert "a==1: skipped, it is broken" in out
    assert out[-1] == "the first bad is a==3, or before it a==1, a==2, which was skipped"


def test_an_undecided_step_gets_four_times_the_budget_once(run) -> None:
    def verdict(head: int, step: steps.Step) -> SimpleNamespace:
        budget = step.options[step.options.index("--budget") + 1]
        of_first = {"10": "unproven", "40": "equivalent"}[budget]
        return row("regressed") if head == 2 else row(of_first)

    code, out, _ = run(3, verdict, "--budget", "10")
    assert code == 0
    assert "a==1: good, equivalent +5.0 % [+4.0 %, +6.0 %]" in out
    code, out, _ = run(3, lambda head, _: row("regressed" if head == 2 else "inconclusive"))
    assert code == 1
    assert "a==1: skipped, inconclusive +5.0 % [+4.0 %, +6.0 %]" in out


def test_an_error_is_bad_in_any_dtype_and_bytes_need_no_time(run) -> None:
    def errors(head: int, step: steps.Step) -> list[SimpleNamespace]:
        assert step.options[-2:] == ("--budget", "0")
        in_half = row("wrong" if head else "right", "error", dtype="bfloat16", head=30.0)
        return [row("right", "error"), in_half]

    code, out, _ = run(2, errors, "--metric", "error")
    assert code == 0
    assert out[-1].endswith("error against a==0: wrong in bfloat16: 10 → 30 of its budget")
    code, out, _ = run(2, lambda *_: row("regressed", "peak_memory"), "--metric", "peak_memory")
    assert out[-1].endswith("peak_memory against a==0: regressed +1 bytes")


@pytest.mark.parametrize(
    ("verdicts", "code", "says"),
    [
        (lambda *_: row("equivalent"), 1, "nothing to find: forward_backward is no worse in BAD"),
        (lambda *_: "no network", 2, "BAD cannot be compared with GOOD: no network"),
        (lambda *_: row("unproven"), 2, "BAD cannot be compared with GOOD: unproven +5.0 %"),
        (lambda *_: [], 2, "BAD cannot be compared with GOOD: no forward_backward"),
        (lambda *_: row("wrong in both", "error"), 2, "GOOD is wrong in float32"),
    ],
)
def test_what_cannot_be_searched_is_a_line(run, verdicts, code, says) -> None:
    metric = "error" if "wrong" in says else "forward_backward"
    found, out, errors = run(3, verdicts, "--metric", metric)
    assert found == code
    assert says in (out if code == 1 else errors.splitlines())[-1]


def test_a_finished_step_is_not_measured_again_and_an_unfinished_one_is(
    tmp_path, monkeypatch
) -> None:
    step = steps.Step("a", "b", ("--impl", "logits.eager"), tmp_path)
    for other in (("a", "c", step.options), ("a", "b", ("--impl", "logits.fused"))):
        assert steps.Step(*other, tmp_path).file != step.file
    step.file.with_suffix(".part").write_text("half a row")
    with pytest.raises(steps.CannotMeasure, match="no revision 'a' in this clone"):
        step.verdicts()
    step.file.write_text("workload,dtype,impl,metric\n")
    assert step.verdicts() == []


def test_what_is_kept_is_not_taken_for_other_code_or_another_interpreter(
    tmp_path, monkeypatch
) -> None:
    loss = tmp_path / "impls" / "logits" / "mine.py"
    loss.parent.mkdir(parents=True)
    mine = tmp_path / "my_loss.py"
    for file in (loss, mine):
        file.write_text("")
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    names = [steps.digest("compare", "a", str(mine))]
    assert steps.digest("compare", "a", str(mine)) == names[0]
    for file in (loss, mine):
        file.write_text("EDITED = True")
        names.append(steps.digest("compare", "a", str(mine)))
    monkeypatch.setattr(steps, "INTERPRETED", True)
    names.append(steps.digest("compare", "a", str(mine)))
    assert len({*names}) == 4


WRONG_IN_HALF = losses(1, "(1.1 if ctx.dtype == torch.bfloat16 else 1)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "bad", "says"),
    [
        ("peak_memory", losses(2), "regressed +1 bytes"),
        ("error", WRONG_IN_HALF, "wrong in bfloat16: "),
    ],
)
def test_a_release_of_a_package_is_found(index, tmp_path, metric, bad, says) -> None:
    for number, text in enumerate([losses(), "raise RuntimeError('broken')", losses(), bad, bad]):
        wheel(index, f"1.{number}", text)
    command = [sys.executable, "-m", "benchmarks", "bisect", "1.0", "1.4", "--releases", PACKAGE]
    options = ["--impl", f"{PACKAGE}.losses:fused_ce", "--workload", "notebook"]
    done = subprocess.run(
        [*command, *options, "--metric", metric, "--out", str(tmp_path / "out")],
        **{"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{PACKAGE}==1.3 is the first that is bad. {metric} against ")
    assert says in last
