"""``python -m reports``: its help, and the files that it writes."""

import platform
import re

import pandas as pd
import pytest
from asv.util import get_cpu_info

from reports.__main__ import COMMANDS, main
from reports.analysis.verdicts import PAIR_COLUMNS
from reports.readers.schema import COLUMNS
from tests.reports.rows import pairs, tidy, write_csv


def test_command_writes_csvs_and_a_table(tmp_path, capsys) -> None:
    file = write_csv(
        tmp_path,
        tidy(),
        tidy(impl="logits.builtin", value=25.0),
        tidy(impl="logits.reference", value=5.0),
        tidy(metric="peak_memory", unit="bytes", value=2**21),
    )
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    said = "the results of other machines and of older commits are in summary.md"
    assert said in capsys.readouterr().out
    assert main([str(file), "--all", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"eager +12.50 +0.50 +2.50 +2.00", printed)
    assert max(map(len, printed.partition("index.html")[0].splitlines())) <= 80
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "12.50   0.50   2.50" in summary
    assert "2.00      -      -" in summary
    written = pd.read_csv(tmp_path / "out" / "tidy.csv")
    assert list(written) == COLUMNS
    assert len(written) == 4
    wide = pd.read_csv(tmp_path / "out" / "wide.csv").set_index("impl")
    assert wide.loc["logits.eager", ["forward", "peak_memory"]].tolist() == [12.5, 2**21]


def test_a_host_of_the_same_name_with_other_hardware_is_another_machine(tmp_path, capsys) -> None:
    here = {"machine": platform.node(), "hardware": get_cpu_info()}
    rows = [tidy(**here, impl="logits.here"), tidy(**here | {"hardware": "Z80"}, impl="logits.z80")]
    assert main([str(write_csv(tmp_path, *rows)), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "here  " in printed
    assert "z80" not in printed


def test_the_terminal_shows_the_last_commit_and_the_summary_each(tmp_path, capsys) -> None:
    here = {"machine": platform.node(), "hardware": get_cpu_info()}
    older = {"commit": "b" * 40, "commit_date": "2025-01-01T00:00:00+00:00"}
    rows = [tidy(**here, impl="logits.new"), tidy(**here, **older, impl="logits.old")]
    out = tmp_path / "out"
    assert main([str(write_csv(tmp_path, *rows)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "new  " in printed
    assert "old  " not in printed
    assert "logits.old" in (out / "summary.md").read_text()


def test_help_names_each_command_and_the_help_of_each_has_examples(capsys) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in listed
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "examples:\n  python -m reports" in capsys.readouterr().out


def test_command_with_nothing_to_read(tmp_path, capsys) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "make bench" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "missing")])
    assert "no file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verdicts", "calibration"])
def test_a_file_of_pairs_without_pairs_is_said(command: str, tmp_path, capsys) -> None:
    (tmp_path / "pairs.csv").write_text(",".join(PAIR_COLUMNS) + "\n")
    assert main([command, str(tmp_path / "pairs.csv")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'pairs.csv'}: it has no pairs\n"


def test_verdicts_with_a_larger_margin_than_the_runs(tmp_path, capsys) -> None:
    """The slowdown of 3 % was injected for the margin of the run, 2 %."""
    rows = pairs()
    rows.loc[rows["role"] == "head", "value"] /= 1.1
    rows.to_csv(tmp_path / "pairs.csv", index=False)
    for margin in ("0.02", "0.1"):
        assert main(["verdicts", str(tmp_path / "pairs.csv"), "--margin", margin]) == 0
        assert "**equivalent**" in capsys.readouterr().out


def test_the_page_takes_edge_cases_of_losses_that_overwrite_nothing(tmp_path) -> None:
    write_csv(tmp_path, tidy())
    cases = {"impl": ["logits.eager"], "the input": ["untouched"]}
    pd.DataFrame(cases).to_csv(tmp_path / "edge_cases.csv", index=False)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "untouched" in (tmp_path / "out" / "index.html").read_text()
