"""Two revisions against each other, as a user does it: in a clone, with a change of one's own."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

import reports.__main__
from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.compare import calibrate
from benchmarks.compare.cli import parse, workloads_of

QUICK = ("--workload", "notebook", "--impl", "logits.eager", "--budget", "1")


@pytest.fixture
def clone(tmp_path) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git clone")
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (tmp_path / "temporary").mkdir()
    return folder


def start(clone: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        **{"cwd": clone, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        env=os.environ | {"TMPDIR": str(clone.parent / "temporary"), "PYTHONPATH": str(clone)},
    )


def compare(clone: Path, *arguments: str) -> tuple[int, str, str]:
    return run(clone, "compare", *arguments)


def run(clone: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(clone, *arguments)
    out, errors = process.communicate(timeout=300)
    nothing_is_left(clone)
    assert "Traceback" not in errors
    return process.returncode, out, errors


def nothing_is_left(clone: Path) -> None:
    """Neither processes, nor what was exported, nor worktrees."""
    left = clone.parent / "temporary"
    for _ in range(100):
        processes = subprocess.run(["pgrep", "-f", str(left)], capture_output=True, text=True)
        if not processes.stdout and not list(left.glob("cross-entropy-*")):
            break
        time.sleep(0.1)
    assert not processes.stdout
    assert not list(left.glob("cross-entropy-*"))
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=clone, capture_output=True, text=True
    )
    assert len(worktrees.stdout.splitlines()) == 1


def change(clone: Path, before: str, after: str, file: str = "impls/logits/eager.py") -> None:
    path = clone / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_heavier_is_seen_and_can_be_recomputed(clone, capsys) -> None:
    line = "    check_call(input, target, weight, reduction, label_smoothing)\n"
    change(clone, line, line + "    input = input * 1.0 + input * 0.0\n")
    code, out, errors = compare(clone, "HEAD", *QUICK, "--out", "pairs.csv")
    assert code == 1, errors
    assert "| logits.eager | peak_memory |" in out
    assert "**regressed**" in out
    assert "+), margin 2 %" in out  # the working tree differs from its commit, and that is said
    rows = pd.read_csv(clone / "pairs.csv")
    timed = rows[rows["unit"] == "ms"]
    counts = timed["role"].value_counts()
    assert set(counts) == {counts["base"]}, counts
    assert set(counts.index) == {"base", "head", "control", "planted"}
    assert reports.__main__.main(["verdicts", str(clone / "pairs.csv")]) == 1
    assert capsys.readouterr().out.strip() in out


def test_a_loss_that_one_revision_lacks_is_said(clone) -> None:
    (clone / "impls/logits/eager.py").rename(clone / "impls/logits/renamed.py")
    code, _, errors = compare(clone, "HEAD", *QUICK)
    assert code == 2
    assert ".: no implementation 'logits.eager'; did you mean" in errors


def test_a_wrong_head_has_no_times(clone) -> None:
    change(clone, "grad = p.mul_(", "grad = p.mul_(1.01 * ")
    code, out, _ = compare(clone, "HEAD", *QUICK)
    assert code == 1
    assert "**wrong**" in out
    assert "forward_backward" not in out


def test_what_does_not_differ_is_not_measured(clone, capsys) -> None:
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=clone, check=True)
    code, out, _ = compare(clone, "HEAD", "HEAD")
    assert code == 0
    assert "no implementation that can be measured here differs" in out
    assert main(["compare", "HEAD", "HEAD", "--strict"]) == 4
    assert "differs; --impl NAME measures it anyway" in capsys.readouterr().out


@pytest.mark.slow
def test_what_only_one_revision_has_and_what_needs_ranks_is_named(clone) -> None:
    (clone / "impls/logits/eager.py").rename(clone / "impls/logits/renamed.py")
    change(clone, "import torch\n", "import torch\n\nCHANGED = True\n", "impls/sharded/fused.py")
    change(clone, "logits.eager", "logits.renamed", "impls/logits/compiled.py")
    _, out, errors = compare(clone, "HEAD", "--workload", "notebook", "--budget", "1")
    assert "not compared: only HEAD has logits.eager\n" in errors
    assert "not compared: only . has logits.renamed\n" in errors
    assert "not compared: sharded.fused runs on ranks\n" in errors
    timed = set(re.findall(r"^\| (\S+) \| forward_backward", out, re.MULTILINE))
    assert timed == {"logits.compiled"}


@pytest.mark.slow
def test_a_loss_with_threads_of_its_own_is_measured(clone) -> None:
    """Forked with its loss, a process would lack these threads, and wait for them for ever."""
    pool = "from concurrent.futures import ThreadPoolExecutor\n\nPOOL = ThreadPoolExecutor(1)\n"
    change(clone, "import torch\n", f"import torch\n{pool}")
    line = "    check_call(input, target, weight, reduction, label_smoothing)\n"
    change(clone, line, line + "    POOL.submit(int).result()\n")
    code, out, errors = compare(clone, ".", ".", *QUICK)
    assert code == 0, errors
    assert "| logits.eager | forward_backward |" in out


def test_what_does_not_import_is_said(clone) -> None:
    change(clone, "import torch\n", "import torch\nimport torch.nothing_of_the_kind\n")
    code, _, errors = compare(clone, "HEAD", *QUICK)
    assert code == 2
    assert ". cannot be measured: ModuleNotFoundError" in errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-branch"], "no revision 'no-such-branch' in this clone"),
        (["--impl", "logits.egar", "HEAD"], "did you mean logits.eager"),
        (["--impl", "eager", "HEAD"], "'eager' is no level"),
        (["--impl", "sharded.eager", "HEAD"], "compare measures in one process"),
        (["--impl", "linear.quack", "HEAD"], "HEAD: linear.quack "),
        (["HEAD", "--workload", "gpt2_txt", *QUICK[2:4]], "did you mean gpt2_text"),
        (["HEAD", "--margin", "2"], "a margin is between 0 and 1"),
        (["HEAD", *QUICK, "--out", "/dev/full"], "No space left on device"),
        (["HEAD", *QUICK, "--out", "/proc/nothing/pairs.csv"], "/proc/nothing"),
    ],
)
def test_bad_input_gets_a_line_and_exit_2(arguments, says, tmp_path, monkeypatch, capsys) -> None:
    """In this process, as most of it is over before torch would be imported anew."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        code = main(["compare", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("cross-entropy-*"))


def test_a_shallow_clone_says_how_to_get_the_rest(clone, tmp_path) -> None:
    shallow = tmp_path / "shallow"
    url = f"file://{clone}"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", url, str(shallow)], check=True)
    code, _, errors = compare(shallow, "HEAD~1")
    assert code == 2
    assert "this clone is shallow: `git fetch --unshallow` gets the rest" in errors


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_interrupted_or_killed_it_leaves_nothing_but_its_pairs(clone, how) -> None:
    process = start(clone, "compare", "HEAD", "HEAD", *QUICK[:-1], "60", "--out", "pairs.csv")
    pairs = clone / "pairs.csv"
    for _ in range(600):
        if pairs.exists() and ",ms," in pairs.read_text():
            break
        time.sleep(0.1)
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=60)
    nothing_is_left(clone)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in errors
    assert how == signal.SIGKILL or "interrupted" in errors
    assert (pd.read_csv(pairs)["unit"] == "ms").any()


def test_interrupted_while_torch_is_imported_it_leaves_nothing(clone) -> None:
    process = start(clone, "compare", "HEAD", "HEAD", *QUICK)
    while not list((clone.parent / "temporary").glob("cross-entropy-*")):
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    nothing_is_left(clone)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_the_other_process_begins_before_torch_is_imported_and_may_find_no_room() -> None:
    code = """if True:
        import sys
        import benchmarks.__main__ as command

        def server(on_cuda):
            print("torch" in sys.modules)
            raise OSError("no space left")

        command.Server = server
        print(command.main(["compare", "HEAD"]))
    """
    asked = [sys.executable, "-c", code]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n2\n", "no space left\n")


def test_each_level_has_a_workload_of_its_own_unless_one_is_chosen() -> None:
    names = calibrate.parse([]).impl
    usual = {level: found.name for level, found in workloads_of(names, None, "cpu").items()}
    assert usual == {"logits": "gpt2_text@32", "linear": "tinystories_1m"}
    assert {found.name for found in workloads_of(names, "notebook", "cpu").values()} == {"notebook"}


@pytest.mark.slow
def test_strict_makes_the_undecided_fail(clone) -> None:
    command = ("HEAD", "HEAD", *QUICK, "--pass", "forward")
    code, out, _ = compare(clone, *command)
    assert code == 0  # one pair decides nothing
    assert re.search(r"logits.eager forward: \d of the 8 pairs .* --budget \d\n", out), out
    assert re.search(r"\n1 of 1 times are undecided: 1 (inconclusive|unproven)\n$", out), out
    assert compare(clone, *command, "--strict")[0] == 3


@pytest.mark.slow
def test_calibrate_compares_the_same_with_itself(clone) -> None:
    both = ("--impl", "logits.builtin", "--impl", "logits.eager", "--workload", "notebook")
    few = ("--comparisons", "2", "--pairs", "2", "--out", "pairs.csv")
    code, table, errors = run(clone, "calibrate", *both, *few)
    assert code == 0, errors
    assert (
        "| logits.builtin · forward_backward · notebook · float32 | 2 % | 2 pairs | 1 | 0 |"
        in table
    )
    assert "| all | 2 % | 2 pairs | 2 | 0 |" in table
    _, out, _ = compare(clone, "HEAD", "HEAD", *QUICK)
    assert "Calibrated here: of 2 comparisons of the same code, of at most 2 pairs, 0 were" in out
    again = subprocess.run(
        [sys.executable, "-m", "reports", "calibration", str(clone / "pairs.csv"), "--pairs", "2"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() in table


def test_the_workflow_asks_for_what_there_is() -> None:
    """Its commands are parsed by the commands themselves: a flag renamed here must show there."""
    workflow = (ROOT / ".github/workflows/compare.yml").read_text()
    [line] = re.findall(r"python -m benchmarks compare (.*?) \|", workflow)
    arguments = parse(shlex.split(line))
    assert (arguments.base, arguments.head) == ("$base", "HEAD")
    assert arguments.strict
    assert f"path: {arguments.out.parent}" in workflow
    assert (
        re.search(r"run: make \S+", workflow)[0].removeprefix("run: make ")
        in (ROOT / "Makefile").read_text()
    )
