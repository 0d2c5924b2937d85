"""The page of several machines: which comes first, and which rows belong together."""

import platform
import re

import pandas as pd
import pytest
from asv.util import get_cpu_info

from reports.__main__ import main
from reports.render import page
from tests.reports.rows import (
    as_read,
    loss,
    pairs,
    tidy,
    words,
    write_csv,
)

HERE = {"machine": platform.node(), "hardware": get_cpu_info()}
OTHER = HERE | {"hardware": "Z80"}  # another host of the same name


def folded(html: str) -> str:
    """What is inside the details of other machines."""
    inside, depth = "", 0
    for part in re.split(r"(</?details[^>]*>)", html):
        if depth or part == '<details class="others">':
            depth += part.startswith("<details") - part.startswith("</details")
            inside += part
    return inside


def test_the_page_leads_with_this_machine_and_folds_the_others() -> None:
    rows = [
        *loss("logits.away", 1.0, 9, **OTHER, workload="llama3_405b"),  # faster, and larger
        *loss("logits.home", 2.0, 9, **HERE),
    ]
    history = [tidy(**OTHER, commit=f"c{n}", impl="logits.away") for n in range(2)]
    history += [tidy(**HERE, commit=f"c{n}", impl="logits.home") for n in range(2)]
    html = page.render(
        as_read([*rows, *history]), [], None, pairs().assign(**OTHER, threads="2", file="x.csv")
    )
    text, inside = words(html), words(folded(html))
    assert re.findall("[A-Z][a-z]+ of other machines: [0-9]", text) == [
        "Verdicts of other machines: 1",
        "Tables of other machines: 3",
        "Comparisons of other machines: 1",
        "Histories of other machines: 1",
    ]
    assert "take logits.away" in inside
    assert "logits.eager, forward backward" in inside
    assert "logits.home" not in inside
    assert text.count("take logits.home") == 1
    assert text.count("logits.away") - inside.count("logits.away") == 1  # of the environments
    assert re.search(r'id="cell-1">logits · gpt2_text · ', html)
    assert html.index("<td>Z80") > html.index(f"<td>{HERE['hardware']}")
    assert "What other machines measured is folded" in text


def test_if_this_machine_measured_nothing_nothing_is_folded() -> None:
    rows = loss("logits.away", 1.0, 9, **OTHER)
    html = page.render(as_read(rows), [], None, pairs().assign(**HERE, threads="2", file="x.csv"))
    assert not folded(html)
    assert "other machines" not in words(html)


@pytest.fixture
def merged(tmp_path):
    """The words of the page that is made of several folders, one for each list of rows."""

    def run(*given: list[dict[str, object]]) -> str:
        folders = [tmp_path / f"machine-{n}" for n in range(len(given))]
        for folder, rows in zip(folders, given, strict=True):
            folder.mkdir(exist_ok=True)
            write_csv(folder, *rows)
        assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 0
        return words((tmp_path / "out" / "index.html").read_text())

    return run


def test_machines_of_one_name_are_kept_apart_by_their_hardware(merged, tmp_path) -> None:
    here = loss("logits.eager", 10.0, 100) + loss("logits.builtin", 20.0, 100)
    there = [row | {"hardware": "Xeon"} for row in here]
    text = merged(here, there)
    assert text.count("take logits.eager: the fastest of 2, at 10.00 ms") == 2
    assert "box, EPYC, torch" in text
    assert "box, Xeon, torch" in text
    written = tmp_path / "out" / "tidy.csv"
    assert len(pd.read_csv(written)) == 2 * len(here)
    # A copy of a folder adds nothing. Neither does a tidy.csv that was written earlier.
    written.rename(tmp_path / "machine-1" / "tidy.csv")
    merged(here, there, here)
    assert len(pd.read_csv(written)) == 2 * len(here)


def test_two_runs_of_compare_are_two_and_a_copy_of_one_is_none(merged, tmp_path) -> None:
    slower = pairs()
    same = slower.assign(value=slower["value"] / slower["role"].map({"head": 1.1}).fillna(1.0))
    for n, run in enumerate((slower, same, slower)):
        (tmp_path / f"machine-{n}").mkdir()
        run.to_csv(tmp_path / f"machine-{n}" / "compare.csv", index=False)
    text = merged(*[loss("logits.eager", 10.0, 100)] * 3)
    found = re.findall(r"logits.eager, forward backward, float32 (\w+) 10 ms", text)
    assert sorted(found) == ["equivalent", "regressed"]
    assert "machine-0/compare.csv" in text
    assert "machine-1/compare.csv" in text
    assert "passed over" not in text


def test_edge_cases_that_differ_are_in_rows_of_their_own(merged, tmp_path) -> None:
    for n, case in enumerate(("untouched", "overwritten", "untouched")):
        (tmp_path / f"machine-{n}").mkdir()
        cases = {"impl": ["logits.eager", "logits.builtin"], "the input": [case, "untouched"]}
        pd.DataFrame(cases).to_csv(tmp_path / f"machine-{n}" / "edge_cases.csv", index=False)
    (tmp_path / "machine-0" / "half.json").write_text('{"env_name": ')
    text = merged(*[loss("logits.eager", 10.0, 100)] * 3)
    assert re.search(r"logits.eager \(\S+machine-0/edge_cases.csv\) untouched", text)
    assert re.search(r"logits.eager \(\S+machine-1/edge_cases.csv\) ≠ overwritten", text)
    assert "machine-2" not in text
    assert text.count("logits.builtin") == 1
    assert "It overwrites its input." in text
    assert "1 file or cell was passed over" in text


def test_the_picture_is_of_this_machine() -> None:
    rows = as_read([*loss("logits.away", 1.0, 9), *loss("logits.home", 2.0, 9, **HERE)])
    assert "home" in words(page.picture(rows))
    assert "away" not in words(page.picture(rows))
