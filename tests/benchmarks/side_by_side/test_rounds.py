"""The rounds, and the CSV that ``python -m benchmarks`` adds their rows to."""

import gc
from pathlib import Path

import pandas as pd
import pytest

import impls
from benchmarks.measure import memory
from benchmarks.measure.step import step_of
from benchmarks.options import append_rows
from benchmarks.side_by_side import rounds
from benchmarks.side_by_side.rows import exact_row
from benchmarks.side_by_side.sampler import Sample, Sampler
from benchmarks.workloads import workload

COLUMNS = ["impl", "metric", "value"]


def append(file: Path, *names: str) -> None:
    for row in append_rows(
        file, (exact_row(name, "error", "relative", 0.5) for name in names), COLUMNS
    ):
        assert row["impl"] in file.read_text()  # written before the next is measured


def test_rows_are_added_below_one_header(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    append(file, "logits.first", "logits.second")
    append(file, "logits.third")
    assert pd.read_csv(file)["impl"].tolist() == ["logits.first", "logits.second", "logits.third"]


def test_a_file_of_an_older_version_keeps_its_columns(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("value,impl\n")
    append(file, "logits.first")
    assert file.read_text().splitlines() == ["value,impl", "0.5,logits.first"]


def test_a_run_without_rows_leaves_the_file_empty(tmp_path) -> None:
    file = tmp_path / "rows.csv"
    assert list(append_rows(file, [], COLUMNS)) == []
    assert file.read_text() == ""


def test_memory_is_measured_without_a_search_through_all_that_is_imported(monkeypatch) -> None:
    """A search for garbage takes 0.2 s, and a loss's memory takes four."""
    searched = []
    monkeypatch.setattr(memory, "peak_memory", lambda *_: searched.append(len(gc.get_objects())))
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(rounds, "missing_memory", lambda *_: "it was not measured")
    tensors = workload("tinystories_1m@8").tensors("logits", "float32")
    gc.unfreeze()
    alive = len(gc.get_objects())
    list(rounds.measure([impls.load("logits.eager")], tensors, "float32", "cpu", ["forward"]))
    assert searched[0] < alive / 10


@pytest.mark.parametrize(("checks_noisy", "expected"), [(0, 7), (1, 10), (2, 13), (9, 14)])
def test_noisy_times_get_more_rounds_until_they_are_steady(
    checks_noisy, expected, monkeypatch
) -> None:
    calls = iter(range(9))
    cell = ("logits.builtin", "forward")
    monkeypatch.setattr(
        rounds, "noisy_times", lambda *_: {cell} if next(calls) < checks_noisy else set()
    )
    monkeypatch.setattr(rounds, "ROUNDS", (7, 7))
    losses = [impls.load("logits.builtin")]
    tensors = workload("tinystories_1m@8").tensors("logits", "float32")
    rows = list(rounds.measure(losses, tensors, "float32", "cpu", ["forward", "backward"]))
    counts = {row["metric"]: len(row["samples"]) for row in rows if row["unit"] == "ms"}
    assert counts == {"forward": expected, "backward": 7}
    noisy = {(row["impl"], row["metric"]) for row in rows if row.get("noisy")}
    assert noisy == ({cell} if checks_noisy == 9 else set())


def test_an_interruption_in_the_first_round_keeps_what_was_measured(monkeypatch) -> None:
    taken = []

    class Interrupted(Sampler):
        def take(self, name: str, pass_: str) -> list[Sample]:
            taken.append(name)
            if len(taken) == 4:  # after the warm-up of two, and one sample of a loss
                raise KeyboardInterrupt
            return super().take("logits.builtin", pass_)

    monkeypatch.setattr(rounds, "Sampler", Interrupted)
    rows, losses = [], [impls.load("logits.builtin")]
    tensors = workload("tinystories_1m@8").tensors("logits", "float32")
    with pytest.raises(KeyboardInterrupt):
        rows.extend(rounds.measure(losses, tensors, "float32", "cpu", ["forward"]))
    assert {row["metric"] for row in rows} >= {"error", "peak_memory", "forward"}


@pytest.mark.parametrize("n", [1, 2, 8])
def test_two_different_rows_change_places(n: int) -> None:
    """Else a sample could use the results of an earlier call."""
    step = step_of(
        impls.load("logits.eager"), workload("tinystories_1m").tensors("logits", "float32")
    )
    step.given = {"target": step.given["target"][:n]}
    sampler = Sampler({}, "cpu")
    for _ in range(50):
        one, other = sampler.two_rows(step)
        assert (one != other) == (n > 1)
        assert {one, other} <= {*range(n)}


def test_losses_that_overwrite_their_input_share_a_copy_of_it(monkeypatch) -> None:
    samplers = []

    class Recorded(Sampler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            samplers.append(self)

    monkeypatch.setattr(rounds, "Sampler", Recorded)
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})
    names = ["logits.native_in_place", "logits.fused_in_place", "logits.builtin"]
    tensors = workload("tinystories_1m@8").tensors("logits", "float32")
    losses = [impls.load(name) for name in names]
    rows = list(rounds.measure(losses, tensors, "float32", "cpu", ["forward_backward"]))
    assert {row["impl"] for row in rows if row["metric"] == "forward_backward"} >= {*names}
    inputs = [samplers[0].steps[name].arguments["input"].data_ptr() for name in names]
    assert inputs[0] == inputs[1] != inputs[2] == tensors["input"].data_ptr()
