"""Regressions in a history: rises of the code are named, rises of the environment are set apart."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import ROOT
from reports.__main__ import main
from reports.analysis.change_points import Change, largest_first
from reports.readers.files import read
from reports.readers.schema import whole

LIGER = ROOT / "tests" / "data" / "liger-history.csv"


def series(impl: str, values: list[float], device: str = "box", metric: str = "forward"):
    dates = pd.date_range("2026-01-01", periods=len(values), tz="UTC")
    rows = pd.DataFrame(
        {
            "impl": impl,
            "value": values,
            "commit": [f"c{n}" for n in range(len(values))],
            "commit_date": dates.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **{"device": device, "metric": metric, "unit": "ms", "workload": "w"},
        }
    )
    return whole(rows, "test")


def regressions(rows: pd.DataFrame, margin: float) -> list[Change]:
    return [one for one in largest_first(rows, margin) if one.rise]


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 0.01, n)


def test_the_known_regression_of_liger_in_its_twelve_cells_and_nothing_else(capsys) -> None:
    assert main(["regressions", "--all", str(LIGER), "--margin", "0.05"]) == 1
    named = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(named) == 12
    for line in named:
        assert "fused_linear_cross_entropy" in line
        assert " · liger · " in line
        assert ": 2845fe8: " in line
        assert line.startswith("NVIDIA H100 80GB HBM3")
        assert line.endswith("open")
    kinds = [line.split(" · liger · ")[1].partition(":")[0] for line in named]
    assert sorted(kinds) == 4 * ["forward"] + 4 * ["full"] + 4 * ["full_memory"]
    assert "59.92 → 155.7 ms (+159.9 %)" in named[0]


def test_what_the_other_provider_shares_is_the_environments(capsys) -> None:
    main(["regressions", "--all", str(LIGER), "--margin", "0.05"])
    shared = capsys.readouterr().out.split("\n\n")[1]
    assert shared.startswith("Changes of the environment, not of the code")
    assert shared.count("huggingface · full_memory") == 3


def test_an_amount_of_memory_that_a_script_adds_to_all_is_the_environments(capsys) -> None:
    """At 7705dcc both providers hold 2,004 MB more, at every size."""
    assert main(["regressions", "--all", str(LIGER.with_name("liger-cpo-memory.csv"))]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": 7705dcc: " in line]
    assert len(lines) == 8
    assert all("the others rose by 2004 MB with it" in line for line in lines)


def test_a_step_is_found_where_it_began_and_where_it_was_fixed() -> None:
    values = np.r_[10 * noise(8, 0), 12 * noise(6, 1), 10 * noise(7, 2)]
    [one] = regressions(series("mine", list(values)), 0.05)
    assert (one.commit, one.fixed) == ("c8", "c14")
    assert (one.before, one.after) == pytest.approx((10, 12), rel=0.01)
    assert one.confidence > 0.999


def test_some_commits_that_are_slower_and_then_fixed_are_found_in_a_short_history() -> None:
    """As 3ff046e and 59b31e8 of this repository. Neighbours that are alike do not hide it."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.repeat([3.2, 4.2, 3.2], [4, 6, 7]) * np.exp(rng.normal(0, 0.02, 17))
        [one] = regressions(series("mine", list(values)), 0.05)
        assert (one.commit, one.fixed) == ("c4", "c10")


def test_a_short_slowdown_is_found_in_a_loud_history() -> None:
    """In half of the histories: the commits' own scatter is a fifth of what the loss lost."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.repeat([3.2, 4.6, 3.2], [4, 6, 15]) * np.exp(rng.normal(0, 0.07, 25))
        found += "c4" in [one.commit for one in regressions(series("mine", list(values)), 0.05)]
    assert found >= 10


def test_noise_in_a_short_history_is_a_regression_in_less_than_three_of_a_hundred() -> None:
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found += bool(regressions(series("mine", list(np.exp(rng.normal(0, 0.04, 8)))), 0.05))
    assert found < 6


def test_noise_and_drops_are_no_regressions() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert not regressions(series("mine", list(10 * np.exp(rng.normal(0, 0.03, 40)))), 0.02)
    assert not regressions(series("mine", [10.0] * 6 + [8.0] * 6), 0.05)


def test_more_overlap_is_no_regression() -> None:
    rows = series("sharded.fused", [0.3] * 9 + [0.9] * 9, metric="overlap")
    assert regressions(rows, 0.05)
    assert not regressions(rows.assign(unit="share"), 0.05)


def test_one_commit_alone_proves_nothing() -> None:
    assert not regressions(series("mine", [10.0] * 8 + [15.0]), 0.05)


def test_a_step_of_all_is_the_environments_and_of_one_is_its_own() -> None:
    both = [*(10 * noise(8, 3)), *(13 * noise(8, 4))]
    more = [*(20 * noise(8, 5)), *(39 * noise(8, 6))]
    still = list(7 * noise(16, 7))
    rows = [series(name, both) for name in ("a", "b", "c")]
    found = regressions(pd.concat([*rows, series("worse", more)]), 0.05)
    assert [one.environment for one in found] == [False, True, True, True]
    assert "worse" in found[0].cell
    assert found[0].shared == pytest.approx(1.3, rel=0.02)
    [own] = regressions(pd.concat([series("a", both), series("b", still)]), 0.05)
    assert not own.environment


def test_machines_are_not_mixed() -> None:
    rows = pd.concat([series("a", [10.0] * 6, "one"), series("a", [20.0] * 6, "another")])
    assert not regressions(rows, 0.05)


def test_nothing_open_exits_0(tmp_path, capsys) -> None:
    file = tmp_path / "rows.csv"
    series("mine", [10.0] * 6 + [12.0] * 6 + [10.0] * 6).assign(n=1).to_csv(file, index=False)
    assert main(["regressions", str(file)]) == 0
    assert "fixed in c12" in capsys.readouterr().out


def test_bad_input_gets_a_line(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["regressions", str(tmp_path / "missing.csv")])
    assert "no file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["regressions", str(LIGER), "--margin", "5"])
    assert "a margin is between 0 and 1" in capsys.readouterr().err
    damaged = tmp_path / "damaged.csv"
    damaged.write_text("kernel_provider,commit\nliger,1\n")
    assert main(["regressions", str(damaged)]) == 2
    assert "no history of Liger-Kernel: it lacks gpu_name" in capsys.readouterr().err


def test_ligers_history_is_read_whole() -> None:
    rows, notes = read([LIGER])
    assert not notes
    assert len(rows) == 3608
    assert set(rows["device"]) == {"NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA H100 NVL"}


def named(found) -> list[tuple[str, str]]:
    return [(one.kind, one.commit) for one in found]


def test_small_steps_add_up() -> None:
    values = [1.0] * 20 + [1.04] * 20 + [1.08] * 20
    [one] = regressions(series("mine", values), 0.05)
    assert (one.kind, one.commit, one.before, one.after) == (
        "step",
        "c20",
        1.0,
        pytest.approx(1.08),
    )
    assert not regressions(series("mine", values[:40]), 0.05)
    for seed in range(10):
        [one] = regressions(series("mine", list(values * noise(60, seed) ** 0.3)), 0.05)
        assert one.before == pytest.approx(1, rel=0.01)
        assert one.after == pytest.approx(1.08, rel=0.01)


def test_small_steps_that_add_up_to_little_more_than_the_margin_are_the_codes() -> None:
    [one] = regressions(series("mine", [1.0] * 20 + [1.03] * 20 + [1.06] * 20), 0.05)
    assert (one.commit, one.last, one.environment) == ("c20", "c19", False)


def test_a_drift_of_little_more_than_the_margin_is_the_codes() -> None:
    [one] = regressions(series("mine", list(1.001 ** np.arange(61))), 0.05)
    assert (one.kind, one.commit, one.last, one.environment) == ("drift", "c1", "c0", False)


@pytest.mark.parametrize("scatter", [0.0, 0.01, 0.02])
def test_a_slow_drift_is_named(scatter) -> None:
    for seed in range(10):
        values = 1.005 ** np.arange(60) * (1 + scatter * (noise(60, seed) - 1) / 0.01)
        [one] = regressions(series("mine", list(values)), 0.05)
        assert one.kind == "drift"
        assert one.after / one.before == pytest.approx(1.34, rel=0.04)
        assert "drift, 1" in str(one) or scatter
        assert not one.environment


def test_a_drift_that_all_share_is_the_environments() -> None:
    drift = 1.005 ** np.arange(60)
    rows = [series(name, list(drift * noise(60, n))) for n, name in enumerate("abc")]
    assert [one.environment for one in regressions(pd.concat(rows), 0.05)] == [True, True, True]


def test_bytes_have_no_margin_and_no_noise() -> None:
    rows = series("mine", [100] * 5 + [101] * 5, metric="peak_memory").assign(unit="bytes")
    [one] = regressions(rows, 0.05)
    assert (one.commit, one.before, one.after) == ("c5", 100, 101)
    [one] = regressions(rows.assign(value=[0] * 5 + [5_000_000] * 5), 0.05)
    assert "0 → 5,000,000 bytes, " in str(one)
    [one] = regressions(rows.assign(value=[100] * 4 + [104] + [100] * 5), 0.05)
    assert (one.commit, one.fixed) == ("c4", "c5")


def test_bytes_that_all_hold_more_are_the_environments_by_their_difference() -> None:
    rows = [
        series("logits.builtin", [100] * 5 + [164] * 5, metric="peak_memory"),
        series("mine", [1000] * 5 + [1064] * 5, metric="peak_memory"),
        series("worse", [1000] * 5 + [1080] * 5, metric="peak_memory"),
    ]
    found = regressions(pd.concat(rows).assign(unit="bytes"), 0.05)
    assert {one.impl: one.environment for one in found} == {
        "logits.builtin": True,
        "mine": True,
        "worse": False,
    }


def test_what_stopped_is_named() -> None:
    values = [1.0] * 10 + [np.nan] * 10
    [one] = regressions(series("mine", values), 0.05)
    assert (one.kind, one.commit, one.fixed) == ("stopped", "c10", "")
    assert "stopped, no number after 1 ms, open" in str(one)
    [one] = regressions(series("mine", [*values, 1.0]), 0.05)
    assert one.fixed == "c20"
    both = pd.concat([series("mine", values), series("logits.builtin", values)])
    for one in regressions(both, 0.05):
        assert one.environment
        assert str(one).endswith("the others stopped too")
    assert not regressions(series("mine", [np.nan] * 5 + [1.0] * 5), 0.05)


def test_a_run_that_failed_stops_what_it_measured_before() -> None:
    rows = series("mine", [1.0] * 10)
    failed = rows.iloc[8:].assign(metric="failed", unit="count", value=1)
    found = regressions(pd.concat([rows.iloc[:8], failed]), 0.05)
    assert named(found) == [("stopped", "c8")]


def test_a_change_beside_a_control_that_moved_in_another_metric_is_the_environments() -> None:
    def of(impl: str, after: float, metric: str) -> pd.DataFrame:
        return series(impl, [*(10 * noise(8, 1)), *(after * noise(8, 2))], metric=metric)

    control = of("logits.builtin", 13, "backward")
    alike, more = of("mine", 12.5, "forward"), of("worse", 20, "forward")
    found = regressions(pd.concat([control, alike, more]), 0.05)
    environment = {one.impl: one.environment for one in found}
    assert environment["mine"]
    assert not environment["worse"]
    [mine] = [one for one in regressions(pd.concat([control, alike]), 0.05) if one.impl == "mine"]
    assert str(mine).endswith("a control changed with it in another metric")


def test_dates_that_a_rebase_reversed_change_nothing(monkeypatch) -> None:
    rows = series("mine", [10.0] * 6 + [12.0] * 6)
    dates = rows["commit_date"].tolist()
    dates[5], dates[6] = dates[6], dates[5]
    rebased = rows.assign(commit_date=dates)
    subjects = {f"c{n}": "" for n in range(12)}
    monkeypatch.setattr("reports.analysis.series.subjects", lambda: subjects)
    assert str(regressions(rebased, 0.05)[0]) == str(regressions(rows, 0.05)[0])


def test_names_and_hashes_stay_as_they_are_in_the_file(tmp_path, capsys) -> None:
    rows = series("NA", [1.0] * 5 + [2.0] * 5).assign(n=9, workload="null", dtype="float32")
    rows["commit"] = [f"{n:040d}" for n in range(10)]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert main(["regressions", "--all", str(tmp_path / "rows.csv")]) == 1
    assert f"null · float32 · NA · forward: {5:040d}: 1 → 2 ms" in capsys.readouterr().out
