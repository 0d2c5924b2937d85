"""Result files of every kind become rows. Damaged files are named and passed over."""

import json
from pathlib import Path

import pytest

from benchmarks import ROOT
from reports.analysis.selection import cells
from reports.commands import reproduce
from reports.readers.files import read
from reports.readers.schema import COLUMNS
from tests.reports.rows import tidy, write_csv

ANOTHER_PROJECT = json.dumps(
    {
        **{
            "commit_hash": "c" * 40,
            "env_name": "x",
            "date": 0,
            "params": {"machine": "m"},
            "python": "3",
        },
        **{"requirements": {}, "env_vars": {}, "result_columns": ["result", "params"]},
        **{"results": {"suite.time_it": [[1.0], []]}, "durations": {}, "version": 2},
    }
)


SAMPLES = [0.010, 0.011, 0.012, 0.013, 0.014, 0.015, 0.016]


@pytest.fixture
def asv_results(tmp_path) -> Path:
    """The folder that ``asv run --record-samples`` writes, with a skipped and a failed cell."""
    params = [
        ["'logits.builtin'", "'logits.eager'", "'logits.wrong'"],
        ["'gpt2_text'"],
        ["'float32'"],
    ]
    content = {
        "commit_hash": "b" * 40,
        "env_name": "virtualenv-py3.11",
        "date": 1767225600000,
        "params": {"machine": "box", "torch": "2.13.0", "python": "3.11"},
        "python": "3.11",
        "requirements": {"torch": "2.13.0"},
        "env_vars": {"MALLOC_MMAP_THRESHOLD_": "4294967296"},
        "result_columns": ["result", "params", "version", "samples"],
        "results": {
            "logits.CPU.time_forward": [
                [0.013, float("nan"), None],
                params,
                "1",
                [SAMPLES, None, None],
            ],
            "logits.CPU.track_forward": [[14.0, None, None], params, "1", [[14.0] * 9, None, None]],
            "logits.CPU.track_peak_memory": [[4096, 2048, float("nan")], params, "1"],
            "environment.track_threads": [[2], [], "1"],
        },
        "durations": {},
        "version": 2,
    }
    folder = tmp_path / "results" / "box"
    folder.mkdir(parents=True)
    (folder / "bbbbbbbb-env.json").write_text(json.dumps(content))
    (folder / "machine.json").write_text("{}")
    return tmp_path / "results"


def test_asv(asv_results) -> None:
    rows, notes = read([asv_results])
    forward = rows[rows["source"] == "asv, one by one"].iloc[0]
    assert forward["impl"] == "logits.builtin"
    assert forward["value"] == pytest.approx(13.0)
    assert (forward["ci_low"], forward["ci_high"]) == pytest.approx((10.0, 16.0))
    assert (forward["n"], forward["unit"], forward["device"]) == (7, "ms", "cpu")
    assert (forward["threads"], forward["allocator"]) == (2, "pinned")
    in_turn = rows[rows["source"] == "asv"].set_index(["impl", "metric"])["value"]
    assert in_turn["logits.builtin", "forward"] == 14
    assert in_turn["logits.eager", "peak_memory"] == 2048
    # A cell that failed has a row without a number, and a note. A skipped cell has neither.
    assert in_turn.isna().sum() == len(notes) - 1 == 2
    assert any("'logits.wrong', 'gpt2_text', 'float32') failed" in note for note in notes)


def test_asv_in_an_environment_that_was_there(asv_results) -> None:
    """As ``make bench`` runs it: asv knows neither torch nor the allocator, so the suite says."""
    [file] = asv_results.rglob("bbbbbbbb-env.json")
    content = json.loads(file.read_text()) | {"env_vars": {}, "params": {"machine": "box"}}
    content["results"] |= {
        "environment.track_torch": [[2013000], [], "1"],
        "environment.track_pinned_allocator": [[1], [], "1"],
    }
    file.write_text(json.dumps(content))
    rows, _ = read([asv_results])
    assert set(rows["torch"]) == {"2.13.0"}
    assert set(rows["allocator"]) == {"pinned"}


def test_asv_marks_the_times_of_a_cell_in_which_the_suite_counted_noise(asv_results) -> None:
    [file] = asv_results.rglob("bbbbbbbb-env.json")
    content = json.loads(file.read_text())
    params = [["'logits.builtin'", "'logits.eager'"], ["'gpt2_text'"], ["'float32'"]]
    content["results"] = {
        "logits.CPU.track_forward": [[14.0, 9.0], params, "1"],
        "logits.CPU.track_noisy": [[0, 2], params, "1"],
        "logits.CPU.track_peak_memory": [[1, 2], params, "1"],
    }
    file.write_text(json.dumps(content))
    rows, _ = read([asv_results])
    assert set(rows["metric"]) == {"forward", "peak_memory"}
    assert rows.loc[rows["noisy"], ["impl", "metric"]].values.tolist() == [
        ["logits.eager", "forward"]
    ]


def test_asv_of_two_ranks(asv_results) -> None:
    [file] = asv_results.rglob("bbbbbbbb-env.json")
    params = [["'sharded.eager'"], ["'gpt2_text@256'"], ["'float32'"]]
    results = {
        "sharded.CPUx2.track_sent": [[4096], params, "1"],
        "sharded.CPUx2.track_collectives": [[4], params, "1"],
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"results": results}))
    rows, _ = read([asv_results])
    assert rows[["metric", "unit", "value"]].values.tolist() == [
        ["sent", "bytes", 4096],
        ["collectives", "count", 4],
    ]
    assert set(rows["device"]) == {"cpu × 2"}
    assert '--bench "sharded.CPUx2.*' in reproduce(rows.iloc[0])


def test_pytest_benchmark_compares_a_loss_with_the_builtin_of_its_own_rounds(tmp_path) -> None:
    """The machine was ten times slower while eager was measured."""
    about = {name: value for name, value in tidy(metric="backward").items() if name in COLUMNS[:12]}
    times = {"logits.eager": [0.1] * 9, "logits.fused": [0.02] * 9, "logits.builtin": [0.01] * 9}
    builtin = {"logits.eager": [200.0] * 9, "logits.fused": [10.0] * 9, "logits.builtin": [9.0] * 9}
    found = [
        {"extra_info": about | {"impl": impl, "builtin_ms": builtin[impl]}, "stats": {"data": data}}
        for impl, data in times.items()
    ]
    (tmp_path / "0001.json").write_text(json.dumps({"benchmarks": found}))
    rows, notes = read([tmp_path])
    assert not notes
    tables = [cell.set_index("impl")["value"].to_dict() for cell in cells(rows)]
    assert tables == [
        {"logits.builtin": 200, "logits.eager": 100},
        {"logits.builtin": 10, "logits.fused": 20},
        {"logits.builtin": 10},
    ]
    assert rows.iloc[0][["metric", "unit", "n"]].tolist() == ["backward", "ms", 9]
    assert set(map(reproduce, (row for _, row in rows.iloc[:2].iterrows()))) == {
        "pytest --benchmark-only --impl logits.eager"
    }


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("broken.json", '{"env_name": ', "damaged JSON"),
        ("foreign.json", '{"hello": 1}', "neither asv's nor pytest-benchmark's"),
        ("list.json", "[1, 2]", "neither asv's nor pytest-benchmark's"),
        ("old.json", '{"env_name": "x", "version": 999}', "not readable by asv"),
        ("empty.csv", "", "damaged CSV"),
        ("other.csv", "a,b\n1,2\n", "no tidy CSV: it lacks machine"),
        ("half.json", '{"benchmarks": [{"stats": {}}]}', "not of this project, or damaged"),
        ("another_project.json", ANOTHER_PROJECT, "not of this project, or damaged"),
    ],
)
def test_what_cannot_be_read_is_named_and_passed_over(tmp_path, name, text, why) -> None:
    write_csv(tmp_path, tidy())
    (tmp_path / name).write_text(text)
    rows, notes = read([tmp_path])
    assert len(rows) == 1
    assert len(notes) == 1
    assert name in notes[0]
    assert why in notes[0]


def test_a_file_begun_before_hardware_was_recorded(tmp_path) -> None:
    row = tidy()
    del row["hardware"]
    write_csv(tmp_path, row)
    rows, notes = read([tmp_path])
    assert (rows["hardware"].tolist(), notes) == ([""], [])


def test_older_files_that_call_the_reference_a_limit(tmp_path) -> None:
    for level in ("logits", "linear", "sharded"):
        rows, _ = read([write_csv(tmp_path, tidy(impl=f"{level}.limit"))])
        assert rows["impl"].tolist() == [f"{level}.reference"]
    committed, _ = read([ROOT / "reports" / "measured"])
    references = committed["impl"].str.endswith(".reference")
    assert set(committed.loc[references, "source"]) >= {"epyc.csv", "numbers.csv"}
    assert not committed["impl"].str.endswith(".limit").any()


def test_half_written_last_row_is_dropped(tmp_path) -> None:
    file = write_csv(tmp_path, tidy(), tidy(metric="backward"))
    file.write_text(file.read_text().rstrip()[:-12])
    rows, _ = read([file])
    assert rows["metric"].tolist() == ["forward"]
