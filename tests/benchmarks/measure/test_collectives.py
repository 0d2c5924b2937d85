"""The time and the bytes of collectives."""

from benchmarks.measure import collectives


def test_what_sends_nothing_has_no_overlap() -> None:
    assert collectives.communication(lambda: None, "cpu") == (0, None)
