"""asv's suites: what they track, and what asv finds of them."""

import ast
import json
import re
import shutil
import subprocess
import sys
from typing import ClassVar

import pytest
from asv_runner.benchmarks.mark import SkipNotImplemented

from benchmarks import ROOT, linear, logits
from benchmarks.environment import progress
from benchmarks.side_by_side import rounds
from benchmarks.suite import PROFILES, is_importable, packages


def test_asv_leaves_out_a_rival_that_its_environment_lacks(tmp_path) -> None:
    file = tmp_path / "rival.py"
    file.write_text('"""A rival."""\n\nfrom a_package_nobody_has.losses import cross_entropy\n')
    assert not is_importable(file)
    assert is_importable(ROOT / "impls" / "logits" / "eager.py")
    # By way of logits.triton and the kernel's file.
    assert "triton" in packages(ROOT / "impls" / "logits" / "triton_in_place.py")


@pytest.fixture(scope="module")
def numbers():
    """What a suite measures for asv at the smallest workload, with a loss that is wrong."""
    wrong = str(ROOT / "tests" / "files" / "zeros.py")

    class Suite(logits.CPU):
        params: ClassVar = []

    Suite.params = [
        ["logits.builtin", "logits.eager", wrong, "logits.of_tomorrow", "logits.reference"],
        ["tinystories_1m@8"],
        ["float32"],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "SECONDS", {"cpu": 0.0})
        return Suite().setup_cache()


def test_progress_and_what_is_skipped_are_seen_while_asv_waits(
    tmp_path, monkeypatch, capsys
) -> None:
    """As ``make bench`` shows them."""
    file = tmp_path / "stderr"
    monkeypatch.setenv("BENCHMARK_STDERR", str(file))
    monkeypatch.setattr(progress, "LINES", 0.0)
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})
    names = ["logits.builtin", "logits.of_tomorrow"]
    logits.CPU().measure([names, ["tinystories_1m@8"], ["float32"]])
    shown = file.read_text()
    assert re.search(r"^rounds: \d of \d done, \d+ s left$", shown, re.MULTILINE)
    assert re.search(r"^skipped: .*logits.of_tomorrow", shown, re.MULTILINE)
    assert capsys.readouterr().err == ""


def test_the_quick_profile_leaves_out_what_takes_longer_than_all_others(
    monkeypatch, capsys
) -> None:
    monkeypatch.delenv("BENCHMARK_STDERR", raising=False)
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})
    names = ["linear.builtin", "linear.torch_chunked"]
    found = linear.CPU().measure([names, ["tinystories_1m@8"], ["float32"]])
    assert {impl for impl, *_ in found} == {"linear.builtin", "linear.reference"}
    assert "skipped: linear.torch_chunked takes too long for quick\n" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lets_python_keep_bytecode(monkeypatch) -> None:
    """pip compiles none, so each process of ``make bench`` would compile all its imports again."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    command = ["make", "--file", "Makefile", "--file", "-", "shown"]
    shown = subprocess.run(
        command, cwd=ROOT, input="shown: ; @env", capture_output=True, text=True, check=True
    ).stdout
    assert "PATH=" in shown
    assert "PYTHONDONTWRITEBYTECODE" not in shown


def cell(impl: str) -> tuple[str, str, str]:
    return impl, "tinystories_1m@8", "float32"


def test_asv_times_are_those_of_rounds_that_all_losses_share(numbers) -> None:
    suite = logits.CPU()
    eager, reference = (
        suite.track_forward(numbers, *cell(impl))["samples"]
        for impl in ("logits.eager", "logits.reference")
    )
    assert len(eager) == len(reference) >= rounds.ROUNDS[0]
    ratios = suite.track_forward_multiple(numbers, *cell("logits.eager"))["samples"]
    assert ratios == [time / base for time, base in zip(eager, reference, strict=True)]
    assert set(suite.track_forward_multiple(numbers, *cell("logits.reference"))["samples"]) == {1}
    assert suite.track_peak_memory(numbers, *cell("logits.builtin")) > 0
    assert suite.track_error(numbers, *cell("logits.eager")) < 1e-6


def test_asv_counts_noisy_times(numbers, monkeypatch) -> None:
    rows = [
        {"impl": "logits.eager", "metric": metric, "samples": [1.0], "noisy": 1}
        for metric in ("forward", "forward_backward")
    ]
    monkeypatch.setattr(rounds, "measure", lambda *_: iter(rows))
    measured = logits.CPU().measure([["logits.eager"], ["tinystories_1m@8"], ["float32"]])
    assert logits.CPU().track_noisy(measured, *cell("logits.eager")) == 2
    assert logits.CPU().track_noisy(numbers, *cell("logits.eager")) in (0, 1, 2)


def test_a_commit_without_a_loss_of_the_level_is_skipped() -> None:
    params = [["logits.of_tomorrow", "logits.reference"], ["tinystories_1m@8"], ["float32"]]
    assert logits.CPU().measure(params) == {}


def test_asv_times_no_wrong_loss(numbers) -> None:
    [wrong] = [impl for impl, *_ in numbers if impl.endswith("zeros.py")]
    with pytest.raises(ArithmeticError, match="its gradients are wrong"):
        logits.CPU().track_forward(numbers, *cell(wrong))


def test_asv_skips_what_the_commit_lacks_and_what_a_reference_has_not(numbers) -> None:
    for impl in ("logits.of_tomorrow", "logits.reference"):
        with pytest.raises(SkipNotImplemented, match=f"{impl} has no error"):
            logits.CPU().track_error(numbers, *cell(impl))


def test_asvs_environment_is_the_pinned_one() -> None:
    """It has what benchmarks imports, in the versions that constraints.txt has."""
    text = re.sub(r"^\s*//.*$", "", (ROOT / "asv.conf.json").read_text(), flags=re.MULTILINE)
    pins = {name: pin for name, [pin] in json.loads(text)["matrix"]["req"].items()}
    lines = (ROOT / "constraints.txt").read_text().replace("_", "-").splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    assert pins.items() <= constraints.items()
    provided = {name.replace("-", "_") for name in pins}
    provided |= {"impls", "benchmarks", "asv_runner", "tiktoken_ext", *sys.stdlib_module_names}
    for file in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.partition(".")[0] in provided, f"{file.name} imports {module}"


def test_asv_discovers_the_suites(tmp_path) -> None:
    """As asv does: in an interpreter that has impls, but neither reports nor tests."""
    (tmp_path / "impls").symlink_to(ROOT / "impls")
    code = (
        "from asv_runner.discovery import list_benchmarks, update_sys_path;"
        f"update_sys_path({str(ROOT / 'benchmarks')!r});"
        f"list_benchmarks({str(ROOT / 'benchmarks')!r}, open('found.json', 'w'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = {one["name"]: one for one in json.loads((tmp_path / "found.json").read_text())}
    metrics = ("track_forward", "track_forward_backward_multiple", "track_peak_memory")
    for level in ("logits", "linear", "logprobs"):
        for metric in metrics:
            benchmark = found[f"{level}.CPU.{metric}"]
            assert benchmark["version"] == "1"
            assert benchmark["params"][1:] == [
                [f"'{name}'" for name in names] for names in PROFILES["quick"]
            ]
    assert not any(".time_" in name for name in found)  # asv's own timing: not in this profile
    keys = {one.get("setup_cache_key") for one in found.values()}
    assert len(keys - {None}) == 4  # a process for each suite
    assert "environment.track_threads" in found
    modules = {name.partition(".")[0] for name in found}
    # Nothing else looks like one.
    assert modules == {"environment", "linear", "logits", "logprobs", "sharded"}
