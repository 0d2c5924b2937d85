"""The error that all are held to: a relative norm, of which what is not finite is no part."""

import math

import pytest
import torch

from benchmarks.oracle import error, worst_row

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("actual", "expected", "is_"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.1], [0.0, 0.0], INF),
        ([NAN, 4.0], [3.0, 4.0], INF),
        ([INF, 4.0], [3.0, 4.0], INF),
        ([-INF, 4.4], [-INF, 4.0], 0.1),
        ([NAN, 4.4], [NAN, 4.0], 0.1),
        ([INF, 4.0], [-INF, 4.0], INF),
        ([0.0, 4.0], [NAN, 4.0], INF),
        ([0.0, 4.0], [-INF, 4.0], INF),
        ([3.0], [3.0, 4.0], INF),
    ],
)
def test_error(actual: list[float], expected: list[float], is_: float) -> None:
    assert error(torch.tensor(actual), torch.tensor(expected)) == pytest.approx(is_)


def test_one_wrong_row_shows_in_the_worst() -> None:
    right = torch.ones(100, 4)
    wrong = right.clone()
    wrong[7] *= 2
    assert error(wrong, right) == pytest.approx(0.1)
    assert worst_row(wrong, right) == pytest.approx(1.0)
