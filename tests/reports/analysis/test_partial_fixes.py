"""A later commit that took back a large part of a rise is named, and the rise stays open."""

import numpy as np
import pytest

from reports.__main__ import main
from reports.analysis.change_points import Change, largest_first
from tests.reports.rows import as_read, tidy, write_csv

PARTS = 6  # commits of each level


def levels(*values: float, scatter: float = 0.0, **of: object) -> list[dict[str, object]]:
    """Rows of one series: ``PARTS`` commits at each level, named by their number."""
    noise = np.random.default_rng(0).normal(0, scatter, PARTS * len(values))
    numbers = np.repeat(values, PARTS) * np.exp(noise)
    return [
        tidy(**of, value=value, commit=f"c{n}", commit_date=f"2026-01-{n + 1:02}")
        for n, value in enumerate(numbers)
    ]


def rises(rows: list[dict[str, object]]) -> list[Change]:
    return [one for one in largest_first(as_read(rows), 0.05) if one.rise]


@pytest.mark.parametrize("scatter", [0.0, 0.01])
@pytest.mark.parametrize(
    ("values", "fixed", "partly_fixed"),
    [
        ((10, 16, 12), "", "c12"),
        ((10, 16, 10), "c12", ""),
        ((10, 16, 14), "", ""),  # a third of the rise
        ((10, 16, 12, 10), "c18", ""),
        ((10, 16, 14, 12), "", "c18"),  # two thirds, in two steps
        ((10, 16, 12, 11), "", "c12"),
        ((12, 10, 16), "", ""),  # the fall is before the rise
    ],
)
def test_a_rise_is_fixed_or_partly_fixed_or_open(values, fixed, partly_fixed, scatter) -> None:
    [one] = rises(levels(*values, scatter=scatter))
    assert one.fixed == fixed
    assert (one.partial_fix.commit if one.partial_fix else "") == partly_fixed


@pytest.mark.parametrize(("after", "told"), [(150, "open, partly fixed in c12"), (151, "open")])
def test_bytes_are_partly_fixed_from_exactly_half_of_the_rise(after, told) -> None:
    [one] = rises(levels(100, 200, after, metric="peak_memory", unit="bytes"))
    assert f"100 → 200 bytes (+100.0 %), confidence 100.00 %, {told}" in str(one)
    assert bool(one.partial_fix) == (after == 150)


def test_a_fall_of_the_environment_fixes_no_rise_of_the_code() -> None:
    others = [row for impl in ("a", "b", "c") for row in levels(20, 20, 14, impl=impl)]
    [one] = rises([*levels(10, 16, 11.2, impl="mine"), *others])
    assert (one.impl, one.commit, one.partial_fix) == ("mine", "c6", None)


def test_the_environment_can_take_back_a_part_of_its_own_rise() -> None:
    found = rises([row for impl in ("a", "b", "c") for row in levels(10, 16, 12, impl=impl)])
    assert [one.environment for one in found] == [True] * 3
    assert [one.partial_fix.commit for one in found] == ["c12"] * 3


def test_it_still_counts_as_open(tmp_path, capsys) -> None:
    assert main(["regressions", str(write_csv(tmp_path, *levels(10, 16, 12)))]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  logits.eager  forward +60.0 %  worse, open, partly fixed in c12",
        "1 regressions, 1 open, in 1 series of 18 numbers (--all lists each)",
    ]


def test_all_says_which_level_is_left(tmp_path, capsys) -> None:
    assert main(["regressions", "--all", str(write_csv(tmp_path, *levels(10, 16, 12)))]) == 1
    line, _ = capsys.readouterr().out.splitlines()
    assert "c6: 10 → 16 ms (+60.0 %)" in line
    assert line.endswith(", open, partly fixed in c12: back to 12 ms")


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ([12, 10], "worse, 1 of 2 open, partly fixed in c12"),
        ([12, 16], "worse, open, 1 of them partly fixed in c12"),
        ([12, 12], "worse, open, partly fixed in c12"),
        ([12, 16, 10], "worse, 2 of 3 open, 1 of them partly fixed in c12"),
    ],
)
def test_rises_that_share_a_line(last, told, tmp_path, capsys) -> None:
    rows = [row for n, value in enumerate(last) for row in levels(10, 16, value, workload=f"w{n}")]
    main(["regressions", str(write_csv(tmp_path, *rows))])
    printed = capsys.readouterr().out
    assert told in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_two_commits_that_fixed_parts_are_not_named_in_one_line(tmp_path, capsys) -> None:
    rows = levels(10, 16, 12, 12) + levels(10, 16, 16, 12, workload="another")
    main(["regressions", str(write_csv(tmp_path, *rows))])
    assert "worse, open, partly fixed\n" in capsys.readouterr().out


def test_the_name_of_the_commit_stays_with_its_words(tmp_path, capsys) -> None:
    rows = levels(10, 16, 12, impl="logits.of_a_long_name_indeed_it_is")
    main(["regressions", str(write_csv(tmp_path, *rows))])
    assert "worse, open,\n    partly fixed in c12\n" in capsys.readouterr().out
