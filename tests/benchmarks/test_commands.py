"""The commands as a user types them: what they print, what they keep, how they refuse."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch

import impls
import impls.__main__
from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.environment.variables import PINNED_ALLOCATOR
from benchmarks.measure import oracle
from benchmarks.measure.step import PASSES, Step, describe_excess
from benchmarks.side_by_side import rounds
from benchmarks.workloads import workload
from reports.readers.schema import COLUMNS
from tests.benchmarks.terminal import run_on_terminal
from tests.wrong import logits
from tests.wrong.correct import in_place

PIPES = {"capture_output": True, "text": True}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, **PIPES)


@pytest.fixture
def pinned(monkeypatch) -> None:
    """The variables with which a command begins again, so that it runs in this process."""
    for name, value in PINNED_ALLOCATOR.items():
        monkeypatch.setenv(name, value)


def test_impls_lists_everything(capsys) -> None:
    assert impls.__main__.main([]) == 0
    table = capsys.readouterr().out
    assert "logits.eager" in table
    assert impls.__main__.main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    eager = next(one for one in listed if one["name"] == "logits.eager")
    assert eager["level"] == "logits"
    assert eager["unavailable"] is None
    assert "cpu" in eager["devices_here"]
    assert eager["summary"] in table


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[str, pd.DataFrame]:
    """What side-by-side says, and its rows, of the least number of rounds."""
    out, said = tmp_path_factory.mktemp("measured") / "rows.csv", io.StringIO()
    names = ("logits.eager", "linear.chunked_vocab", str(ROOT / "tests" / "files" / "zeros.py"))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        for name, value in PINNED_ALLOCATOR.items():
            patch.setenv(name, value)
        patch.setattr(rounds, "SECONDS", {"cpu": 0.0})
        patch.setattr(rounds, "noisy_times", lambda *_: set())  # no more rounds
        of_names = [word for name in names for word in ("--impl", name)]
        code = main(["--workload", "notebook", "--out", str(out), *of_names])
    assert code == 0, said.getvalue()
    return said.getvalue(), pd.read_csv(out)


def test_side_by_side_measures_every_metric(measured) -> None:
    said, rows = measured
    assert list(rows) == [*COLUMNS, "text", "samples", "gpu_state", "noisy"]
    of = rows.groupby("impl")["metric"].agg(set)
    times = set(PASSES)
    memory = {"peak_memory", "saved_memory", "error", "first_call"}
    of_logits = ["logits.eager", "logits.builtin", "linear.logits.eager"]
    for impl in (*of_logits, "linear.chunked_vocab", "linear.builtin"):
        assert of[impl] == times | memory
        assert impl.partition(".")[2] in said
    assert of["logits.reference"] == of["linear.reference"] == times | {"peak_memory"}
    sampled = rows[rows["unit"] == "ms"]
    assert (sampled["n"] >= rounds.ROUNDS[0]).all()
    assert (sampled["ci_low"] <= sampled["value"]).all()
    assert (sampled["value"] <= sampled["ci_high"]).all()
    assert (sampled["samples"].str.split().map(len) == sampled["n"]).all()


def test_a_wrong_loss_has_no_times(measured) -> None:
    said, rows = measured
    wrong = rows[rows["impl"].str.fullmatch(r"logits\..*zeros\.py")]
    assert set(wrong["metric"]) == {"peak_memory", "saved_memory", "error", "first_call"}
    assert wrong.loc[wrong["metric"] == "error", "value"].item() > oracle.BAND["float32"]
    assert "gradients are wrong" in said


def test_edge_cases_are_found_by_running(tmp_path, capsys) -> None:
    out = tmp_path / "edge_cases.csv"
    careless = str(ROOT / "tests" / "files" / "careless.py")
    names = ["logits.builtin", "logits.eager", careless, "sharded.eager"]
    of_names = [word for name in names for word in ("--impl", name)]
    assert main(["edge-cases", "--out", str(out), *of_names]) == 0
    matrix = pd.read_csv(out, keep_default_na=False).set_index("impl")
    assert matrix.loc["logits.builtin", "a penalty on its gradient"] == "differentiated"
    assert matrix.loc["logits.eager", "a penalty on its gradient"] == "raises RuntimeError"
    assert matrix.loc["logits.eager", "mean over rows that are all ignored"] == "nan"
    sharded = matrix.loc["sharded.eager-2-ranks"]
    assert sharded["a target of V, on the CPU"] == "raises IndexError"
    assert sharded["label_smoothing=0.1"] == "ε/V to every class"
    overwrites = matrix.iloc[2]
    assert overwrites["the input after forward and backward"] == "overwritten"
    assert overwrites["label_smoothing=0.1"] == "ε/(V-1) to the others"
    assert overwrites["a target of V, on the CPU"].startswith("returns")
    assert "ε/V to every class" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_are_added_to_a_file_that_exists(measured, tmp_path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text(",".join(COLUMNS) + "\n")  # as before there were samples
    for _ in range(2):
        run = python(
            *("benchmarks", "--workload", "notebook", "--pass", "forward", "--out", str(out)),
            *("--impl", "logits.builtin"),
        )
        assert run.returncode == 0, run.stderr
    rows = pd.read_csv(out)
    assert list(rows) == COLUMNS
    assert (rows["metric"] == "forward").sum() == 4
    assert "backward" not in set(rows["metric"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--impl", "logits.egar"], "no implementation 'logits.egar'; did you mean logits.eager"),
        (["--impl", "missing.py"], "no file missing.py"),
        (["--workload", "gpt2_txt"], "no workload 'gpt2_txt'; did you mean gpt2_text"),
        (["--workload", "gpt2_text@many"], "the number of tokens after the @ is 1 or more"),
        (["--workload", "gpt2_text@999999"], "needs 1000000 tokens"),
        (["--workload", "notebook@9"], "the notebook has 8 tokens"),
        (["--text", "nowhere.txt"], "no file nowhere.txt"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--out", "/proc/nothing/rows.csv"], "/proc/nothing"),
    ],
)
def test_bad_input_gets_a_line_and_exit_2(arguments, says, tmp_path, pinned, capsys) -> None:
    """In this process, as most of it is over before torch would be imported anew."""
    try:
        code = main(["--out", str(tmp_path / "rows.csv"), *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_where_nothing_fits_no_file_is_left(tmp_path, pinned, capsys) -> None:
    out = tmp_path / "rows.csv"
    large = ("--workload", "llama3_405b@1000000", "--impl", "logits.eager")
    assert main([*large, "--out", str(out)]) == 2
    assert "are free" in capsys.readouterr().err
    assert not out.exists()


def test_a_mistyped_command_is_said(capsys) -> None:
    assert main(["compar", "HEAD"]) == 2
    assert capsys.readouterr().err == (
        "no command 'compar'; there are side-by-side, compare, calibrate, bisect, watch, plan, "
        "edge-cases, history, gpu\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda_is_said(tmp_path, pinned, capsys) -> None:
    assert main(["--device", "cuda", "--out", str(tmp_path / "rows.csv")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "there is no CUDA device here"


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_it_begins_again_before_torch_is_imported() -> None:
    """Only the first process prints what it imports."""
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks", "--impl", "logits.egar"]
    environment = {name: os.environ[name] for name in os.environ.keys() - PINNED_ALLOCATOR.keys()}
    run = subprocess.run(command, cwd=ROOT, env=environment, **PIPES)
    assert run.returncode == 2
    assert "did you mean logits.eager" in run.stderr
    assert re.search(r"\| +benchmarks\.", run.stderr)
    assert not re.search(r"\| +torch\b", run.stderr)


def test_ctrl_c_keeps_what_was_measured(tmp_path) -> None:
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks", "--workload", "gpt2_text@128", "--out", str(out)]
    run, shown = run_on_terminal(
        [*command, "--impl", "logits.eager"], interrupt_at=r"rounds \S+ +[1-9]\d*/"
    )
    assert run.returncode == 130, shown
    assert "interrupted" in shown
    assert "Traceback" not in shown
    rows = pd.read_csv(out)
    assert {"error", "peak_memory", "forward_backward"} <= set(rows["metric"])
    assert (rows.loc[rows["metric"] == "forward_backward", "n"] < rounds.ROUNDS[1]).all()
    assert set(rows["allocator"]) == ({"pinned"} if sys.platform == "linux" else {"default"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gradient_without_its_softmax_has_no_time(dtype: str) -> None:
    """Of a vocabulary this large the softmax is half a percent: bfloat16's rounding, in a norm."""
    fn = logits.cross_entropy("no_softmax")
    loss = impls.Loss("logits.no_softmax", "logits", fn, impls.Support(), "")
    step = Step(loss, workload("gpt2_text@32").tensors("logits", dtype))
    assert "gradients are wrong" in describe_excess(step.errors_and_budgets(step.expected(), dtype))


def test_a_mistyped_profile_gets_a_line(tmp_path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import benchmarks.logits"],
        **PIPES | {"cwd": ROOT, "env": os.environ | {"BENCHMARK_PROFILE": "fast"}},
    )
    assert run.returncode == 1
    assert (
        run.stderr == "BENCHMARK_PROFILE is 'fast': it must be one of quick, regular, large, "
        "history, gpu, rehearsal\n"
    )


def test_a_loss_that_overwrites_its_input_spares_the_others() -> None:
    given = workload("notebook").tensors("logits", "float32")
    before = given["input"].clone()
    loss = impls.Loss(
        "logits.in_place", "logits", in_place, impls.Support(overwrites_input=True), ""
    )
    step = Step(loss, given)
    first = step.errors(step.expected())
    step.forward_backward()
    assert step.errors(step.expected()) == first
    assert given["input"].equal(before)
    assert not step.arguments["input"].equal(before)


def test_a_deviation_that_is_none_fails_the_gate(tmp_path) -> None:
    """Strictly: so that the list of a rival's deviations cannot outlive them."""
    file = tmp_path / "rival.py"
    file.write_text(
        "from impls.loss import Support\n"
        "from torch.nn.functional import cross_entropy\n"
        "deviations = {'positional': 'not so', 'value_error': 'raises RuntimeError'}\n"
        "support = Support(deviations=deviations)\n"
    )
    run = python("pytest", "tests/gate", "-k", "positional or value_error", "--impl", str(file))
    assert "1 failed" in run.stdout
    assert "1 xfailed" in run.stdout
    assert "has this property: delete 'positional' from its Support.deviations" in run.stdout


@pytest.mark.parametrize(("flag", "outcome"), [([], "1 skipped"), (["--require-all"], "1 error")])
def test_gate_skips_or_fails_what_is_not_available(flag, outcome, tmp_path) -> None:
    file = tmp_path / "rival.py"
    file.write_text("import a_package_nobody_has")
    run = python("pytest", "tests/gate", "-k", "positional", "--impl", str(file), *flag)
    assert outcome in run.stdout
    assert "needs the package a_package_nobody_has" in run.stdout or not flag


def test_gate_refuses_a_mistyped_name() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pytest", "tests/gate"]
    run = subprocess.run([*command, "--impl", "logits.egar"], cwd=ROOT, **PIPES)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "torch._dynamo" not in run.stderr  # it takes a second
    assert "did you mean logits.eager" in run.stderr
    assert "Traceback" not in run.stderr
