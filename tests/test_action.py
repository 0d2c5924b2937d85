"""The action that guards another repository: what its steps do, for good and bad pull requests."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.compare.cli import parse
from tests.github import Runner, action, commit, new_runner, run_steps

IMPL = "their_package.losses:fused_ce"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def runner(tmp_path) -> Runner:
    return new_runner(tmp_path)


@needs_make
def test_the_harness_is_set_up_with_the_python_of_the_step_before(runner) -> None:
    runner.job |= {"MAKEFLAGS": "n"}  # make prints its commands, and runs none
    done = runner.run(run_steps()[0], {})
    assert done.returncode == 0, done.stdout
    assert f"{sys.executable} -m venv .venv" in done.stdout


@needs_make
def test_gate_and_comparison_get_the_inputs(runner) -> None:
    runner.stand_in()
    (runner.checkout / "my_loss.py").touch()
    two = f"{IMPL}\nmy_loss.py"
    given = {"level": "logits", "margin": "0.05", "budget": "9", "strict": "true"}
    code, said = runner.use(impl=two, base="main~0", install="echo installed in $PWD", **given)
    assert code == 0, said
    assert f"installed in {runner.checkout}\n" in said
    gate, compare = runner.calls().values()
    losses = [f"--impl={IMPL}", "--impl=my_loss.py", "--level=logits"]
    assert gate["words"][0] == "pytest"
    assert gate["words"][-4:] == ["--require-all", *losses]
    assert gate["path"].split(":")[1:] == [f"{runner.checkout}/src", str(runner.checkout)]
    assert compare["folder"] == gate["folder"] == str(runner.checkout)
    asked = parse(compare["words"][2:])
    assert (asked.base, asked.head, asked.level) == ("main~0", "HEAD", "logits")
    assert asked.impl == two.split()
    assert (asked.margin, asked.budget, asked.strict) == (0.05, 9, True)
    assert (runner.checkout / asked.repo).resolve() == runner.checkout
    kept = runner.outputs()
    assert asked.out.parent == Path(kept["folder"])
    assert kept["artifact"] == Path(kept["folder"]).name
    assert runner.summary() == (
        "### Gate\n\n```\npytest has run\nmeasuring: 3 done\n```\n\n"
        "### Comparison\n\nbenchmarks has run\n"
    )


@needs_make
@pytest.mark.parametrize(
    ("codes", "ends"),
    [
        ({"pytest": 1}, 1),  # the comparison runs all the same
        ({"benchmarks": 3}, 3),
        ({"pytest": 1, "benchmarks": 2}, 1),
    ],
)
def test_the_job_fails_in_the_end_and_shows_both(runner, codes, ends) -> None:
    runner.stand_in(**codes)
    code, said = runner.use(impl=IMPL)
    assert code == ends, said
    assert runner.calls().keys() == {"pytest", "benchmarks"}
    assert "pytest has run" in runner.summary()
    assert "benchmarks has run" in runner.summary()


@needs_make
def test_a_loss_that_the_gate_cannot_load_is_not_compared(runner) -> None:
    runner.stand_in(pytest=int(pytest.ExitCode.USAGE_ERROR))
    assert runner.use(impl=IMPL)[0] == 2
    assert runner.calls().keys() == {"pytest"}
    assert "pytest has run" in runner.summary()


@needs_make
def test_without_the_gate_and_with_the_merge_base(runner) -> None:
    runner.stand_in()
    merge_base = runner.checkout / ".git/refs/remotes/origin/main"
    commit(runner.checkout, more="# changed\n")
    assert runner.use(impl=IMPL, gate="false")[0] == 0
    [compare] = runner.calls().values()
    assert parse(compare["words"][2:]).base == merge_base.read_text().strip()
    assert "### Gate" not in runner.summary()


@needs_make
@pytest.mark.parametrize(
    ("inputs", "job", "says"),
    [
        ({"impl": " \n"}, {}, "impl names no loss"),
        ({"strict": "yes"}, {}, "strict is true or false, not yes"),
        ({"gate": "values"}, {}, "gate is true or false, not values"),
        ({}, {"GITHUB_BASE_REF": ""}, "there is no pull request, so the input base is needed"),
        ({}, {"GITHUB_BASE_REF": "other"}, "no merge base here: check out with fetch-depth: 0"),
        ({"repo": ".."}, {}, "is no git repository"),
    ],
)
def test_a_bad_input_is_a_line_of_the_summary(runner, inputs, job, says) -> None:
    runner.stand_in()
    runner.job |= job
    code, said = runner.use(**{"impl": IMPL} | inputs)
    assert code == 2
    assert f"{says}\n" in said
    assert runner.summary().count("\n") == 1
    assert says in runner.summary()
    assert not list(runner.checkout.parent.glob("loss-guard-*"))


@needs_make
def test_no_input_and_no_branch_is_run_as_a_command(runner) -> None:
    runner.stand_in()
    ran = runner.checkout / "ran"
    names = set(action()["inputs"]) - {"install", "repo", "gate", "strict"}
    for command in ("$(touch${IFS}ran)", "`touch${IFS}ran`", ";touch${IFS}ran;", "';touch ran;'"):
        runner.use(**dict.fromkeys(names, command))
        runner.job["GITHUB_BASE_REF"] = command
        runner.use(impl=IMPL)
    assert not ran.exists()


@pytest.mark.slow
@needs_make
@pytest.mark.parametrize(
    ("change", "gate", "ends", "says"),
    [
        ({"more": "# changed\n"}, "true", 0, ["is RIGHT (", "| +0 bytes | **equivalent**"]),
        ({"scale": "1.01"}, "true", 1, ["is WRONG (", "gradient of input is wrong", "**wrong**"]),
        ({"kept": 2}, "false", 1, ["| saved_memory | ", "| +1 bytes | **regressed**"]),
    ],
    ids=["good", "wrong gradient", "a byte more"],
)
def test_pull_requests(runner, change, gate, ends, says) -> None:
    runner.python(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    commit(runner.checkout, **change)
    code, said = runner.use(impl=IMPL, gate=gate, budget="1")
    assert code == ends, said
    for part in says:
        assert part in runner.summary()
    assert "Traceback" not in said
    assert "forward_backward" in runner.summary() or "scale" in change
    kept = Path(runner.outputs()["folder"])
    assert {file.name for file in kept.iterdir()} >= {"compare.txt", "pairs.csv"}
    assert (kept / "pairs.csv").read_text().count(IMPL) > 6
