"""A page of all kinds of results."""

from pathlib import Path

import pandas as pd
import pytest

from reports.__main__ import main
from tests.reports.rows import LOSSES, REGRESSED, asv_file, loss, measured, pairs, write_csv


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The output of ``python -m reports`` for all kinds of input."""
    source, out = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("out")
    there = {"machine": "other", "device": "NVIDIA H100", "commit": "b" * 40, "dtype": "bfloat16"}
    write_csv(source, *measured(), *measured(**there), *loss("logits.wrong", None, 3))
    for day in range(12):
        commit = REGRESSED if day == 6 else f"{day:02x}" * 20
        asv_file(source / "asv", commit, day, 20.0 if day < 6 else 30.0)
    (source / "half.json").write_text('{"env_name": ')
    edge_cases = {"impl": list(LOSSES), "the input": ["untouched"] * 8 + ["overwritten"]}
    pd.DataFrame(edge_cases).to_csv(out / "edge_cases.csv", index=False)
    pairs().to_csv(out / "compare.csv", index=False)
    assert main([str(source), "--out", str(out)]) == 0
    return out
