"""compare and asv run today's benchmarks with the impls of an older revision."""

from types import SimpleNamespace

import pytest

import impls
from benchmarks.measure import availability


def test_a_support_that_knows_nothing_of_cudas_dtypes_is_understood(monkeypatch) -> None:
    """Such is the ``Support`` of revisions before 9b8b0d4."""
    support = SimpleNamespace(devices=("cpu",), dtypes=("float32",))
    monkeypatch.setattr(impls, "load", lambda name: SimpleNamespace(support=support))
    assert availability.load("logits.eager", "float32", "cpu").support is support
    with pytest.raises(availability.Unmeasurable, match="no dtype bfloat16, only float32"):
        availability.load("logits.eager", "bfloat16", "cpu")
