"""A loss that raises while it is measured ends its own numbers, not those of the others."""

import itertools
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import impls
from benchmarks.__main__ import main
from benchmarks.environment.variables import PINNED_ALLOCATOR
from benchmarks.measure import timers
from benchmarks.measure.step import PASSES
from benchmarks.side_by_side import rounds
from benchmarks.side_by_side.failures import DeviceLost
from benchmarks.side_by_side.rows import Row, with_interval
from benchmarks.workloads import workload
from reports.analysis.selection import RUN
from reports.readers.schema import whole
from reports.render import tables


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch) -> None:
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.setattr(rounds, "noisy_times", lambda *_: set())  # no more rounds


def raising(call: int) -> impls.Loss:
    """The builtin loss, which raises at that call and after."""
    calls = itertools.count(1)

    def cross_entropy(input, target):
        if next(calls) >= call:
            raise AssertionError("no room\nfor this")
        return F.cross_entropy(input, target)

    return impls.Loss("logits.raising", "logits", cross_entropy, impls.Support(), "")


def measured(call: int) -> list[Row]:
    losses = [impls.load("logits.builtin"), raising(call), impls.load("logits.eager")]
    tensors = workload("tinystories_1m@8").tensors("logits", "float32")
    rows = []
    try:
        rows.extend(map(with_interval, rounds.measure(losses, tensors, "float32", "cpu", PASSES)))
    except DeviceLost as error:
        rows.append({"impl": "lost", "metric": str(error)})
    return rows


@pytest.mark.parametrize(  # the first call, the third, and one in the rounds
    "call", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 30]
)
def test_the_others_go_on(call: int, capsys) -> None:
    rows = pd.DataFrame(measured(call))
    of = rows.groupby("impl")["metric"].agg(set)
    assert of["logits.eager"] == of["logits.builtin"] > {*PASSES, "error", "first_call"}
    assert "failed" in of["logits.raising"]
    assert ("error" in of["logits.raising"]) == (call > 2)
    assert not set(PASSES) & of["logits.raising"]  # the last round cannot check them
    line = "logits.raising failed, it is left out from here on: AssertionError: no room\n"
    assert capsys.readouterr().err.count(line) == 1


def test_the_table_says_who_failed() -> None:
    rows = pd.DataFrame(measured(1)).assign(workload="tinystories_1m", dtype="float32")
    shown = tables.render(whole(rows.assign(**dict.fromkeys(RUN, "") | {"threads": 2}), ""))
    assert "Failed while measured: logits.raising. The output of the run has the reason." in shown
    [row] = [line for line in shown.splitlines() if line.startswith("| logits.raising")]
    assert set(row) <= set("| logits.raising-")


def test_a_lost_gpu_ends_the_level_with_what_was_measured(monkeypatch) -> None:
    def synchronize(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

    # As a failure sees it: the calls before succeed.
    seen = SimpleNamespace(**vars(timers) | {"synchronize": synchronize})
    monkeypatch.setattr("benchmarks.side_by_side.failures.timers", seen)
    *rows, lost = measured(40)
    assert lost["metric"] == (
        "after logits.raising the GPU cannot be used: "
        "CUDA error: an illegal memory access was encountered"
    )
    of = pd.DataFrame(rows).groupby("impl")["metric"].agg(set)
    assert set(PASSES) <= of["logits.eager"]
    assert "failed" in of["logits.raising"]


@pytest.mark.parametrize(
    ("error", "levels"),
    [(torch.OutOfMemoryError("no room"), ["logits", "linear"]), (DeviceLost("lost"), ["logits"])],
)
def test_what_ends_a_level_is_said_and_no_success(
    error: Exception, levels: list[str], monkeypatch, tmp_path, capsys
) -> None:
    begun = []

    def measure(losses, *_):
        begun.append(losses[0].level)
        raise error
        yield

    monkeypatch.setattr(rounds, "measure", measure)
    for name, value in PINNED_ALLOCATOR.items():  # else it would begin again with these
        monkeypatch.setenv(name, value)
    names = ["--impl", "logits.eager", "--impl", "linear.builtin"]
    out = ["--workload", "tinystories_1m@8", "--out", str(tmp_path / "rows.csv")]
    assert main([*names, *out]) == 1
    assert begun == levels
    assert str(error) in capsys.readouterr().err
