"""Histories: which numbers form a series."""

from reports.analysis.series import groups
from tests.reports.rows import as_read, tidy


def test_multiples_of_the_reference_stand_for_the_times_that_they_are_of() -> None:
    """A shared machine changes its speed from commit to commit, and the reference with it."""
    rows = [
        tidy(metric="forward"),
        tidy(metric="forward_multiple", unit="× reference", value=1.1),
        tidy(metric="backward"),
        tidy(metric="forward", machine="other"),
    ]
    found = {(one["machine"].iloc[0], one["metric"].iloc[0]) for one in groups(as_read(rows))}
    assert found == {("box", "forward_multiple"), ("box", "backward"), ("other", "forward")}
