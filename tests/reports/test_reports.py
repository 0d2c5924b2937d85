"""Result files of every kind become rows; damaged ones are named and passed over."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ROOT
from reports.__main__ import COMMANDS, main
from reports.analysis.intervals import median_interval
from reports.analysis.selection import measured, newest
from reports.readers.files import read
from reports.readers.schema import COLUMNS
from reports.render import tables
from reports.render.commands import reproduce

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


def tidy(**changes: object) -> dict[str, object]:
    row = {
        "machine": "box",
        "device": "cpu",
        "hardware": "EPYC",
        "commit": "a" * 40,
        "commit_date": "2026-01-01T00:00:00+00:00",
        "torch": "2.13.0",
        "threads": 2,
        "allocator": "pinned",
        "impl": "logits.eager",
        "workload": "gpt2_text",
        "dtype": "float32",
        "metric": "forward",
        "unit": "ms",
        "value": 12.5,
        "ci_low": 12.0,
        "ci_high": 13.0,
        "n": 9,
    }
    return row | changes


def write_csv(folder: Path, *rows: dict[str, object], name: str = "now.csv") -> Path:
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


@pytest.fixture
def asv_results(tmp_path) -> Path:
    """A folder as ``asv run --record-samples`` leaves it: one skipped cell, one failed."""
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
    assert list(rows["metric"]) == ["forward", "peak_memory", "peak_memory"]
    forward = rows.iloc[0]
    assert forward["impl"] == "logits.builtin"
    assert forward["value"] == pytest.approx(13.0)
    assert (forward["ci_low"], forward["ci_high"]) == pytest.approx((10.0, 16.0))
    assert (forward["n"], forward["unit"], forward["device"]) == (7, "ms", "cpu")
    assert (forward["threads"], forward["allocator"]) == (2, "pinned")
    assert rows.loc[rows["impl"] == "logits.eager", "value"].tolist() == [2048]
    assert len(notes) == 1
    assert "'logits.wrong', 'gpt2_text', 'float32') failed" in notes[0]


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


def test_pytest_benchmark(tmp_path) -> None:
    about = {name: value for name, value in tidy(metric="backward").items() if name in COLUMNS[:12]}
    content = {"benchmarks": [{"extra_info": about, "stats": {"data": SAMPLES}}]}
    (tmp_path / "0001.json").write_text(json.dumps(content))
    rows, notes = read([tmp_path])
    assert not notes
    assert rows.iloc[0][["metric", "value", "unit", "n"]].tolist() == ["backward", 13.0, "ms", 7]


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


def test_command_writes_csvs_and_a_table(tmp_path, capsys) -> None:
    file = write_csv(
        tmp_path,
        tidy(),
        tidy(impl="logits.builtin", value=25.0),
        tidy(impl="logits.reference", value=5.0),
        tidy(metric="peak_memory", unit="bytes", value=2**21),
    )
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "12.50   0.50   2.50" in printed
    assert "2.00      -      -" in printed
    assert (tmp_path / "out" / "summary.md").read_text().strip() in printed
    written = pd.read_csv(tmp_path / "out" / "tidy.csv")
    assert list(written) == COLUMNS
    assert len(written) == 4
    wide = pd.read_csv(tmp_path / "out" / "wide.csv").set_index("impl")
    assert wide.loc["logits.eager", ["forward", "peak_memory"]].tolist() == [12.5, 2**21]


def test_help_names_each_command_and_the_help_of_each_has_examples(capsys) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in listed
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "examples:\n  python -m reports" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["forward", "backward", "forward_backward"])
def test_the_fastest_comes_first(metric: str) -> None:
    times = {"logits.builtin": 2.0, "logits.chunked_vocab": 3.0, "logits.eager": 1.0}
    rows = pd.DataFrame([tidy(impl=name, metric=metric, value=ms) for name, ms in times.items()])
    assert list(tables.comparison(rows).index) == sorted(times, key=times.__getitem__)


def test_command_with_nothing_to_read(tmp_path, capsys) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "make bench" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "missing")])
    assert "no file or folder" in capsys.readouterr().err


def test_table_shows_the_newest_commit_of_each_machine() -> None:
    rows = pd.DataFrame(
        [
            tidy(source="asv", commit="old", commit_date="2026-01-01T00:00:00+00:00"),
            tidy(source="asv", commit="new", commit_date="2026-01-02T00:00:00+01:00"),
            tidy(source="asv", commit="only", machine="other"),
        ]
    )
    assert newest(rows)["commit"].tolist() == ["new", "only"]


def test_different_runs_are_not_mixed() -> None:
    rows = pd.DataFrame(
        [
            tidy(source="asv", threads=2),
            tidy(source="asv", threads=1, impl="logits.builtin"),
            tidy(source="asv", threads=2, allocator="default", impl="logits.builtin"),
        ]
    )
    assert len(list(tables.sections(rows))) == 3


def sharded(device: str) -> list[dict[str, object]]:
    """The rows of a sharded loss and of the reference."""
    of = {"device": device, "impl": "sharded.fused"}
    reference = of | {"impl": "sharded.reference"}
    least = {"metric": "sent", "unit": "bytes", "value": 2**20}
    share = {"value": 0.7, "ci_low": 0.61, "ci_high": 0.83}
    return [
        tidy(**reference, metric="forward_backward", value=10.0),
        tidy(**reference | least),
        tidy(**of, metric="forward_backward", value=15.0),
        tidy(**of | least | {"value": 3 * 2**20}),
        tidy(**of, metric="collectives", unit="count", value=7),
        tidy(**of | share, metric="overlap", unit="share"),
    ]


def test_a_sharded_loss_is_compared_with_the_reference_of_as_many_ranks() -> None:
    rows = pd.DataFrame(sharded("cpu × 2") + sharded("cpu × 4")).assign(source="x.csv")
    (first, _, table), (second, *_) = tables.sections(rows)
    assert first.startswith("sharded · gpt2_text · float32 · cpu × 2")
    assert second.endswith("cpu × 4")
    of = table.loc["sharded.fused"]
    assert of["forward_backward (ms)"].split() == ["15.00", "-", "1.50"]
    assert of["sent (MiB)"].split() == ["3.00", "-", "3.00"]
    assert of["collectives (count)"].split()[0] == "7.00"
    assert of["overlap (share)"] == "0.61 to 0.83"


def test_a_total_is_of_an_upstream_gradient_of_one_where_all_have_it() -> None:
    of = {"impl": "logits.eager", "metric": "forward_backward", "value": 3.0}
    unit = of | {"metric": "forward_backward_unit", "value": 2.0}
    both = pd.DataFrame([tidy(**of), tidy(**unit)])
    assert measured(both)["total"].tolist() == [2.0]
    other = pd.DataFrame([tidy(**of), tidy(**unit), tidy(**of | {"impl": "logits.builtin"})])
    assert measured(other)["total"].tolist() == [3.0, 3.0]


def test_an_overlap_that_says_nothing_is_not_shown() -> None:
    assert tables.interval(-2.62, 1.06) == "not measurable here"
    assert tables.interval(-0.19, 0.47) == "-0.19 to 0.47"


def test_median_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        _, low, high = median_interval(generator.lognormal(size=15))
        covered += low <= 1.0 <= high
    assert 930 <= covered <= 990


def test_median_interval_of_few_samples_is_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
