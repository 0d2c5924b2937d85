"""Verdicts on pairs: which are decided, which stay open, and how many are false."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.analysis.calibration import calibration, record, statement, upper_bound
from reports.analysis.verdicts import (
    ALPHA,
    COMPARABLE,
    FAILED,
    PAIR_COLUMNS,
    PAIRS,
    UNDECIDED,
    Incomparable,
    conclusion,
    effect,
    effects,
    log_ratios,
    markdown,
    verdicts,
)

MARGIN = 0.02
ROLES = ("head", "control", "planted")


def rows(
    head: float,
    noise: float,
    pairs: int = 8,
    seed: int = 0,
    impl: str = "logits.mine",
    disturbed: float = 0.02,
):
    """Raw pairs in which the head takes ``head`` times as long as the base.

    ``noise`` scatters each process as a whole. ``disturbed`` is the mean disturbance of a block.
    """
    rng = np.random.default_rng(seed)
    slower = {"base": 1.0, "head": head, "control": 1.0, "planted": 1 + MARGIN + 0.01}
    cells = [
        {
            "role": role,
            "pair": pair,
            "block": block,
            "value": 10 * slower[role] * bias[role] * rest,
        }
        for pair in range(pairs)
        for bias in [{role: np.exp(rng.normal(0, noise)) for role in slower}]
        for block, role in enumerate(np.ravel([rng.permutation(list(slower)) for _ in range(12)]))
        for rest in [1 + rng.exponential(disturbed)]
    ]
    constant = dict.fromkeys(COMPARABLE, "same") | {"margin": MARGIN, "dtype": "float32"}
    constant |= {"base": "a", "head": "b", "impl": impl, "metric": "forward", "unit": "ms"}
    constant |= {"workload": "w"}
    return pd.DataFrame(cells).assign(**constant).reindex(columns=PAIR_COLUMNS)


@pytest.mark.parametrize(
    ("head", "verdict"), [(1.0, "equivalent"), (1.04, "regressed"), (0.95, "improved")]
)
def test_what_is_clear_is_decided(head: float, verdict: str) -> None:
    [one] = verdicts(rows(head, 0.003, pairs=12)).itertuples()
    assert one.verdict == verdict
    assert one.low < one.ratio < one.high
    assert one.ratio == pytest.approx(head, abs=0.01)


def test_what_scatters_too_much_is_not_proven() -> None:
    [one] = verdicts(rows(1.0, 0.08)).itertuples()
    assert one.verdict == "unproven"


def test_a_control_that_moves_takes_the_verdict_back() -> None:
    moved = rows(1.04, 0.003)
    moved.loc[moved["role"] == "control", "value"] *= 1.05
    assert verdicts(moved)["verdict"].item() == "unproven"
    blind = rows(1.04, 0.003)
    blind.loc[blind["role"] == "planted", "value"] /= 1.03
    assert verdicts(blind)["verdict"].item() == "unproven"


def test_the_base_is_known_by_two_processes() -> None:
    """If one becomes slower and the other as much faster, the head's ratio stays."""
    before, apart = rows(1.01, 0.003), rows(1.01, 0.003)
    apart.loc[apart["role"] == "base", "value"] *= 1.02
    apart.loc[apart["role"] == "control", "value"] /= 1.02
    ratios = [verdicts(one)["ratio"].item() for one in (before, apart)]
    assert ratios[1] == pytest.approx(ratios[0], abs=0.002)


def test_the_injected_slowdown_is_a_second_base_of_the_control_alone() -> None:
    """Its waits change its own calls. The head's ratio must not change."""
    before, faster = rows(1.01, 0.003), rows(1.01, 0.003)
    faster.loc[faster["role"] == "planted", "value"] *= 0.98
    pair = log_ratios(faster) - log_ratios(before)
    assert pair["head"].abs().max() == 0
    assert pair["control"].mean() == pytest.approx(-np.log(0.98) / 2, abs=0.003)
    assert log_ratios(before)["control"].abs().max() < 0.02


def test_noise_that_only_adds_moves_no_ratio() -> None:
    """The ratio of a median to a mean of two would be -0.7 % here."""
    disturbed = log_ratios(rows(1.0, 0.0, pairs=400, disturbed=0.06)).mean()
    assert disturbed["head"] == pytest.approx(0, abs=0.002)
    assert disturbed["control"] == pytest.approx(0, abs=0.002)
    assert disturbed["planted"] == pytest.approx(np.log1p(MARGIN + 0.01), abs=0.002)


def test_only_what_was_measured_near_in_time_is_compared() -> None:
    """The machine is half as fast in some rounds. The ratio does not scatter more."""
    steady = rows(1.01, 0.0, pairs=50)
    slow = steady["block"] // 16 == 1
    unsteady = steady.assign(value=steady["value"].where(~slow, 2 * steady["value"]))
    scatter = [log_ratios(one)["head"].std() for one in (steady, unsteady)]
    assert scatter[1] < 1.3 * scatter[0]


def test_in_which_order_the_rows_are_read_makes_no_difference() -> None:
    before = rows(1.01, 0.003)
    shuffled = before.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(log_ratios(shuffled), log_ratios(before))


@pytest.mark.parametrize(("role", "alpha"), [("head", 0.005), ("control", 0.025)])
def test_the_head_must_hold_at_99_percent_and_its_controls_at_95(role: str, alpha: float) -> None:
    """An interval ends where scipy's rank test reaches the same alpha."""
    pairs = np.random.default_rng(0).normal(0, 0.01, 20)
    low = effects(pd.DataFrame(dict.fromkeys(ROLES, pairs)), MARGIN)[role].low
    below, above = (
        stats.wilcoxon(pairs - low + apart, alternative="greater").pvalue for apart in (1e-6, -1e-6)
    )
    assert below <= alpha < above


def test_few_pairs_decide_nothing() -> None:
    assert effect(np.full(PAIRS - 1, 0.1), MARGIN).verdict == "inconclusive"


@pytest.mark.parametrize("roles", [["base"], ["base", "head"], ["base", "head", "planted"]])
def test_what_was_interrupted_in_its_first_round_is_unproven(roles: list[str]) -> None:
    whole = rows(1.0, 0.003, pairs=1)
    begun = whole[(whole["block"] < 4) & whole["role"].isin(roles)]
    [one] = verdicts(begun).itertuples()
    assert one.verdict == "unproven"
    assert "unproven" in markdown(verdicts(begun))


@pytest.mark.parametrize("field", COMPARABLE)
def test_different_environments_are_not_compared(field: str) -> None:
    mixed = rows(1.0, 0.003)
    mixed.loc[mixed["role"] == "head", field] = "another"
    with pytest.raises(Incomparable, match=f"{field} differs, (same and another|another and same)"):
        verdicts(mixed)


def test_bytes_are_compared_to_the_byte_and_errors_with_their_budget() -> None:
    cells = [("peak_memory", 100, 101), ("saved_memory", 100, 99), ("error", 0.2, 1.01)]
    cells += [("error", 1.5, 0.2), ("error", 1.5, 1.01)]
    exact = pd.DataFrame(
        {"impl": f"x{number}", "metric": metric, "role": role, "value": value, "unit": "bytes"}
        for number, (metric, base, head) in enumerate(cells)
        for role, value in (("base", base), ("head", head))
    ).assign(**dict.fromkeys(COMPARABLE, "same"), margin=MARGIN, dtype="float32", workload="w")
    table = verdicts(exact.reindex(columns=PAIR_COLUMNS))
    assert list(table["verdict"]) == ["regressed", "improved", "wrong", "right", "wrong in both"]
    assert list(table["verdict"].isin(FAILED)) == [True, False, True, False, False]
    assert "| 100 bytes | 101 bytes | +1 bytes | **regressed** |" in markdown(table)


def test_one_false_verdict_among_many_cells_is_taken_back() -> None:
    """Benjamini-Hochberg: a verdict that holds for a single cell may not hold among sixty cells."""
    barely = rows(1.0, 0.003, pairs=PAIRS, seed=1)
    shift = next(
        s for s in np.arange(1, 1.05, 0.0005) if verdicts(shifted(barely, s)).p.item() <= ALPHA
    )
    alone = shifted(barely, shift)
    assert verdicts(alone)["verdict"].item() == "regressed"
    others = [rows(1.0, 0.003, seed=n + 2, impl=f"logits.{n}") for n in range(60)]
    among = verdicts(pd.concat([alone, *others])).set_index("impl")["verdict"]
    assert among["logits.mine"] == "inconclusive"


def test_calibration_counts_false_verdicts_and_finds_what_is_seen() -> None:
    of_cell, of_all = calibration(rows(1.0, 0.003, pairs=200), MARGIN, [10]).itertuples()
    assert (of_cell.comparisons, of_cell.false, of_cell.undecided) == (20, 0, 0)
    assert of_all.impl == "all"
    assert 0.05 < of_cell.false_below < 0.2  # with 0 of 20 the rate may still be so high
    assert MARGIN / 2 < of_cell.seen < 2 * MARGIN
    # If pairs scatter more, only larger changes are seen, or none.
    coarse = calibration(rows(1.0, 0.012, pairs=200), MARGIN, [10])
    assert not coarse["seen"][0] <= of_cell.seen
    blind = calibration(rows(1.0, 0.08, pairs=40), MARGIN, [10])
    assert blind["undecided"][0] == 4
    assert np.isnan(blind["seen"][0])


def test_calibration_calls_a_verdict_on_the_same_code_false() -> None:
    same, moved = rows(1.0, 0.003, pairs=40), rows(1.05, 0.003, pairs=40, impl="logits.moved")
    table = calibration(pd.concat([same, moved]), MARGIN, [10, 20])
    assert list(table["false"]) == [0, 4, 4, 0, 2, 2]
    assert list(table["comparisons"]) == [4, 4, 8, 2, 2, 4]


def test_a_calibration_is_quoted_on_its_own_machine_alone(tmp_path) -> None:
    path = tmp_path / "calibration.csv"
    here = dict.fromkeys(COMPARABLE, "same")
    assert "is not known" in statement(here, MARGIN, path)
    for pairs in (200, 100):  # the second replaces the first
        record(calibration(rows(1.0, 0.003, pairs=pairs), MARGIN, [10]), path)
    record(calibration(rows(1.0, 0.003, pairs=40).assign(machine="other"), MARGIN, [10]), path)
    assert "of 10 comparisons of" in statement(here, MARGIN, path)
    assert "of 4 comparisons of" in statement(here | {"machine": "other"}, MARGIN, path)
    assert "is not known" in statement(here | {"isa": "another"}, MARGIN, path)
    assert "is not known" in statement(here, MARGIN / 2, path)


def shifted(frame: pd.DataFrame, factor: float) -> pd.DataFrame:
    return frame.assign(value=frame["value"].where(frame["role"] != "head", frame.value * factor))


@pytest.mark.parametrize("heavy", [False, True])
def test_looking_after_every_pair_keeps_false_verdicts_rare(heavy: bool) -> None:
    """The stopping rule, simulated: up to 20 pairs, a scatter of 1 %, light or heavy tails."""
    rng = np.random.default_rng(0)

    def found(change: float) -> list[str]:
        noise = rng.standard_t(3, 20) / 3**0.5 if heavy else rng.standard_normal(20)
        pairs = np.log1p(change) + 0.01 * noise
        for looks in range(PAIRS, 21):
            verdict = effect(pairs[:looks], MARGIN).verdict
            if verdict != "inconclusive":
                return verdict
        return "inconclusive"

    same = [found(0.0) for _ in range(400)]
    assert same.count("regressed") + same.count("improved") <= 2
    slower = [found(MARGIN) for _ in range(400)]
    assert slower.count("regressed") >= 0.92 * 400
    assert slower.count("equivalent") <= 0.05 * 400


def test_a_large_change_is_named_in_a_loud_minute() -> None:
    """The A/A control scatters too much to be called equivalent, and yet +31 % is plainly more."""
    [loud] = verdicts(rows(1.31, 0.04, pairs=12)).itertuples()
    assert loud.verdict == "regressed"
    [faster] = verdicts(rows(0.7, 0.04, pairs=12)).itertuples()
    assert faster.verdict == "improved"


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("scatter", [0.02, 0.1])
def test_a_loud_minute_gives_no_false_verdict(scatter: float, heavy: bool) -> None:
    """The same code, up to 20 looks, by whatever the controls come to."""
    rng = np.random.default_rng(0)

    def concluded() -> str:
        noise = rng.standard_t(3, (20, 3)) / 3**0.5 if heavy else rng.standard_normal((20, 3))
        logs = pd.DataFrame(scatter * noise, columns=list(ROLES))
        logs["planted"] += np.log1p(MARGIN + 0.01)
        for looks in range(PAIRS, 21):
            verdict = conclusion(effects(logs.iloc[:looks], MARGIN), MARGIN)
            if verdict not in UNDECIDED:
                return verdict
        return "undecided"

    found = [concluded() for _ in range(300)]
    assert found.count("regressed") + found.count("improved") <= 1


def test_the_bound_of_a_rate_is_one_sided() -> None:
    """For 0 of n the bound is the rate at which 0 of n has a probability of 5 %."""
    assert upper_bound(0, 200) == pytest.approx(1 - 0.05 ** (1 / 200))
    assert upper_bound(0, 200) == pytest.approx(0.0149, abs=1e-4)
