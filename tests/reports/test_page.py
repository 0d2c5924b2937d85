"""The page, opened as a reader opens it: in a browser, on a phone, in the dark, with no network."""

import itertools
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from benchmarks import ROOT
from reports.__main__ import main
from reports.analysis import verdicts
from reports.analysis.change_points import changes, groups
from reports.readers.files import read
from reports.render import page, plots
from tests.reports.test_pick import loss
from tests.reports.test_reports import sharded, tidy, write_csv

LOSSES = {
    **{
        "linear.reference": (683, 150),
        "linear.builtin": (767, 589),
        "linear.logits.fused": (729, 393),
    },
    **{"linear.cce": (741, 347), "linear.fused": (779, 216), "linear.chunked_vocab": (979, 182)},
    **{
        "logits.reference": (16, 196),
        "logits.builtin": (71, 589),
        "logits.fused_in_place": (42, 0.04),
    },
}
REGRESSED = "c" * 40


def measured(**more: object) -> list[dict[str, object]]:
    return [row for impl, cell in LOSSES.items() for row in loss(impl, *cell, **more)]


def asv_file(folder: Path, commit: str, day: int, ms: float) -> None:
    """A commit's results, as ``asv run --record-samples`` leaves them."""
    params = [["'logits.eager'", "'logits.fused'"], ["'gpt2_text@256'"], ["'float32'"]]
    samples = [[(ms + n / 100) / 1e3 for n in range(7)], [(5 + n / 100) / 1e3 for n in range(7)]]
    content = {
        "commit_hash": commit,
        "env_name": "virtualenv-py3.11",
        "date": 1767225600000 + day * 86400000,
        "params": {"machine": "asv box", "torch": "2.13.0", "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version", "samples"],
        "results": {
            "logits.CPU.time_forward_backward": [
                [float(np.median(one)) for one in samples],
                params,
                "1",
                samples,
            ]
        },
        "durations": {},
        "version": 2,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{commit[:8]}-env.json").write_text(json.dumps(content))


def pairs() -> pd.DataFrame:
    """What ``python -m benchmarks compare`` writes of a loss that became a tenth slower."""
    rng = np.random.default_rng(0)
    of = dict.fromkeys(verdicts.COLUMNS, "x") | {"threads": 2, "margin": 0.02, "dtype": "float32"}
    of |= {"impl": "logits.eager", "metric": "forward_backward", "unit": "ms"}
    roles = {"base": 1.0, "head": 1.1, "control": 1.0, "planted": 1.03}
    rows = [
        of | {"role": role, "pair": pair, "block": n, "value": 10 * ratio * rng.normal(1, 1e-3)}
        for pair in range(10)
        for n, (role, ratio) in enumerate(4 * list(roles.items()))
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as ``python -m reports`` leaves it of everything that there can be."""
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


@pytest.fixture(scope="module")
def html(site) -> str:
    return (site / "index.html").read_text()


def test_it_needs_nothing_but_itself(html) -> None:
    found = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Links().feed(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found}
    for _, attributes in found:
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_the_verdict_says_which_and_why_in_each_environment(html) -> None:
    text = words(html)
    assert "linear.logits.fused: the fastest of 5, at 729 ms forward and backward" in text
    assert "(0.95 × builtin, 1.07 × the reference), with a peak of 393 MiB (0.67 × builtin)" in text
    assert "The least memory: linear.chunked_vocab, 182 MiB in 979 ms." in text
    assert "It overwrites its input." in text
    assert text.count("the fastest of 5, at 729") == 2
    assert "gpt2_text · float32 · cpu" in text
    assert "gpt2_text · bfloat16 · NVIDIA H100" in text


def test_as_fast_within_noise_the_lighter_is_taken() -> None:
    rows = [
        *loss("linear.builtin", 100.0, 589, ci_low=99.0, ci_high=101.0),
        *loss("linear.fused", 70.0, 400, ci_low=68.0, ci_high=73.0),
        *loss("linear.cce", 72.0, 300, ci_low=71.0, ci_high=74.0),
        *loss("linear.compiled", 74.0, 200, ci_low=71.0, ci_high=77.0),  # its interval reaches it
        *loss("linear.chunked_vocab", 90.0, 100, ci_low=89.0, ci_high=91.0),
        *loss("linear.wrong", None, 1),
    ]
    text = words(page.render(as_read(rows), [], None, None))
    assert (
        "take linear.cce: as fast within noise as linear.fused (70.00 ms), which holds 400" in text
    )
    assert "The least memory: linear.chunked_vocab, 100 MiB" in text
    assert "No time: linear.wrong." in text


def test_what_cannot_be_compared_is_in_charts_and_verdicts_of_its_own() -> None:
    here = loss("logits.eager", 10.0, 100) + loss("logits.builtin", 20.0, 100)
    differs = {"machine": "b", "device": "d", "torch": "1", "threads": 1, "allocator": "default"}
    differs |= {"hardware": "Xeon"}
    for name, value in differs.items():
        there = [row | {name: value, "impl": "logits.fused", "value": 1.0} for row in here]
        text = words(page.render(as_read([*here, *there]), [], None, None))
        assert "take logits.eager: the fastest of 2" in text
        assert "take logits.fused: the only one that was timed" in text


def test_a_sharded_loss_has_what_it_sends() -> None:
    text = words(page.render(as_read(sharded("cpu × 2")), [], None, None))
    assert "With a vocabulary split across ranks, take sharded.fused" in text
    assert "collectives communication (ms) overlap, 95 % interval (share)" in text
    assert "3.00 3.00 7 - 0.61 to 0.83" in text
    assert "sent (MiB)" not in words(page.render(as_read(measured()), [], None, None))


def test_an_implementation_measured_at_an_older_commit_alone_stays() -> None:
    old = {"commit": "e" * 40, "commit_date": "2025-01-01T00:00:00+00:00"}
    rows = [*loss("logits.builtin", 20.0, 1), *loss("logits.builtin", 20.0, 1, **old)]
    rows += loss("logits.eager", 10.0, 1, **old)
    text = words(page.render(as_read(rows), [], None, None))
    assert "logits.eager" in text
    assert "take logits.builtin: the only one" in text
    assert "take logits.eager" not in text


def test_the_front_is_what_no_other_is_faster_and_lighter_than() -> None:
    points = pd.DataFrame(
        {"total": [3.0, 1.0, 2.0, 2.0, 4.0], "peak_memory": [1.0, 9.0, 5.0, 6.0, 1.0]},
        index=["a", "b", "c", "d", "e"],
    )
    assert plots.pareto(points) == ["b", "c", "a"]


def test_a_flagged_cell_has_its_samples_its_commit_and_its_command(html) -> None:
    text = words(html)
    assert "logits.eager, forward backward" in text
    assert f"{REGRESSED[:10]} 20.03 ms 30.03 ms +49.9 %" in text
    assert "30, 30.01, 30.02, 30.03, 30.04, 30.05, 30.06" in text
    assert f"'logits.eager', 'gpt2_text@256', 'float32'\" {REGRESSED[:10]}^!" in text
    assert "logits.fused, forward backward" not in text  # it did not change


def test_a_comparison_has_its_verdict_and_its_samples(html) -> None:
    text = words(html)
    assert re.search(r"logits.eager, forward backward, float32 regressed 10 ms 11 ms 1\.10", text)
    assert "planted 10." in text


def test_passed_over_files_are_named_on_the_page_and_on_stderr(tmp_path, capsys) -> None:
    write_csv(tmp_path, tidy())
    (tmp_path / "half.json").write_text('{"env_name": ')
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "edge_cases.csv").write_text("")
    (out / "compare.csv").write_text("impl,metric\nlogits.eager,forward\n")
    assert (
        main(
            [
                str(tmp_path / "now.csv"),
                str(tmp_path / "half.json"),
                str(tmp_path / "foreign.csv"),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    text, told = words((out / "index.html").read_text()), capsys.readouterr().err
    for name in ("half.json", "foreign.csv", "edge_cases.csv", "compare.csv"):
        assert f"{name}: " in text
        assert f"{name}: " in told
    assert "4 files or cells were passed over" in text
    assert "logits.eager" in text


@pytest.fixture
def merged(tmp_path):
    """The page, as words, of a folder for each machine: ``given`` has their rows."""

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
    # A copy of a folder adds nothing, nor does what was written of it.
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


def test_odd_numbers_break_nothing() -> None:
    rows = [
        *loss("logits.inf", None, 1),
        tidy(impl="logits.inf", metric="error", unit="relative", value=float("inf")),
        tidy(impl="logits.zero", metric="forward_backward", value=0.0),
        tidy(impl="nameless", workload="</script><b>", machine="", threads="?", commit_date="?"),
        *loss("logits.<i>", 3.0, 0),
        *loss("logits./a/$long$/path/to/somewhere/else/mine.py", 5.0, 7),
    ]
    rows += [row | {"commit": "d" * 40} for row in rows]
    html = page.render(as_read(rows), ["a < b"], None, None)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "a &lt; b" in html


def test_a_hundred_thousand_rows_take_their_share_of_time_and_five_megabytes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    commits, dates = 100, pd.date_range("2020-01-01", periods=100, tz="UTC").astype(str)
    parts = []
    for series in range(1000):
        impl = ["logits.builtin", "logits.reference", *(f"logits.n{n}" for n in range(8))][
            series % 10
        ]
        values = np.exp(rng.normal(0, 0.03, commits)) * np.where(np.arange(commits) < 95, 1, 2)
        of = tidy(impl=impl, workload=f"gpt2_text@{series // 50}", dtype=f"d{series // 10 % 5}")
        parts.append(
            pd.DataFrame(of | {"value": values, "commit": [f"c{n}" for n in range(commits)]})
        )
        parts[-1] = parts[-1].assign(metric="forward_backward", commit_date=dates)
    file, took = tmp_path / "rows.csv", []
    for series in (100, 1000):
        pd.concat(parts[:series]).to_csv(file, index=False)
        start = time.process_time()  # of this process: others may keep it waiting
        assert main([str(file), "--out", str(tmp_path)]) == 0
        took.append(time.process_time() - start)
    assert took[1] < 6 * took[0]  # most is the same for any number of rows: it was 2 to 3 times
    html = (tmp_path / "index.html").read_text()
    assert len(html) < 5e6
    text = words(html)
    assert "older numbers are not in their charts" in text
    assert f"{page.HISTORIES} of 100 histories are drawn" in text
    assert f"{page.CHANGES} of " in text
    assert "logits.n7" in text


def test_falls_are_changes_too_and_no_regressions() -> None:
    rows = pd.DataFrame(
        [
            tidy(value=10.0 if n < 6 else 8.0, commit=f"c{n}", commit_date=f"2026-01-{n + 1:02}")
            for n in range(12)
        ]
    ).assign(source="x")
    [group] = groups(rows)
    [one] = changes(group, 0.05)
    assert (one.commit, one.last, one.rise) == ("c6", "c5", False)


def test_readmes_picture_is_of_the_committed_numbers() -> None:
    """Its words, as another version of matplotlib may draw the same otherwise."""
    readme = (ROOT / "README.md").read_text()
    [shown] = re.findall(r"!\[[^]]*\]\((\S+\.svg)\)", readme)
    [source] = re.findall(r"`python -m reports (reports/measured/\S+\.csv)`", readme)
    rows, notes = read([ROOT / source])
    assert not notes
    committed = (ROOT / shown).read_text()
    assert words(page.picture(rows)) == words(committed)
    svg = "{http://www.w3.org/2000/svg}"
    style = ElementTree.fromstring(committed).findtext(f"{svg}style")
    assert set(re.findall(r"var\((--\w+)\)", committed)) <= set(re.findall(r"(--\w+):", style))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip(f"no {'Chromium' if binary is None else 'chromedriver'} is installed here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture
def opened(browser, site):
    """The page, on a screen of 1280 pixels, in light."""
    browser.get_log("browser"), browser.get_log("performance")
    show(browser, 1280, "light")
    browser.get((site / "index.html").as_uri())
    return browser


def open_details(browser) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")


def show(browser, width: int, scheme: str, media: str = "") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def test_it_opens_with_no_error_and_no_request(opened, site) -> None:
    assert opened.get_log("browser") == []
    file = (site / "index.html").as_uri()
    messages = [json.loads(one["message"])["message"] for one in opened.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if one["documentURL"] == file]
    assert urls == [file]


def test_every_implementation_measured_is_on_it(opened, site) -> None:
    shown = opened.execute_script("return document.body.innerText")
    for impl in pd.read_csv(site / "tidy.csv")["impl"].unique():
        assert impl in shown


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_itself_never_scrolls_sideways(opened, width) -> None:
    show(opened, width, "light")
    open_details(opened)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    smallest = opened.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg')].map(one => 12.5 *"
        " one.getBoundingClientRect().width / one.viewBox.baseVal.width))"
    )
    assert smallest > 9.5  # pixels, of a chart's text


CONTRAST = """
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = text => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(channel);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = luminance(getComputedStyle(document.body).backgroundColor);
const against = text => {
  const [low, high] = [paper, luminance(text)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const texts = [...document.querySelectorAll('body *')].filter(
  one => [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())
    && !one.closest('style, title, desc'));
return [paper, Math.min(...texts.map(one => {
  const style = getComputedStyle(one);
  return against(one.closest('svg') ? style.fill : style.color);
}))];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_light_and_dark_and_print_is_light(opened, scheme) -> None:
    show(opened, 1280, scheme)
    paper, least = opened.execute_script(CONTRAST)
    assert (paper > 0.5) == (scheme == "light")
    assert least >= 4.5  # WCAG AA
    show(opened, 1280, scheme, media="print")
    paper, least = opened.execute_script(CONTRAST)
    assert paper > 0.5
    assert least >= 4.5


def test_by_keyboard(opened) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = opened.switch_to.active_element
    assert skip.text == "To the content"
    assert skip.rect["x"] >= 0
    assert (
        opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", skip) == "solid"
    )
    regions = opened.find_elements(By.CSS_SELECTOR, ".scroll")
    assert regions
    assert all(one.get_attribute("tabindex") == "0" and one.accessible_name for one in regions)


def test_by_screen_reader(opened) -> None:
    from selenium.webdriver.common.by import By

    def find(selector: str):
        return opened.find_elements(By.CSS_SELECTOR, selector)

    assert [len(find(name)) for name in ("h1", "header", "nav[aria-label]", "main", "footer")] == [
        1
    ] * 5
    levels = [int(one.tag_name[1]) for one in find("h1, h2, h3, h4")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    open_details(opened)
    for chart in find("svg"):
        assert chart.aria_role == "image"
        assert chart.accessible_name
        assert chart.find_element(By.TAG_NAME, "desc").get_attribute("textContent")
    assert len(find("table")) == len(find("table > caption")) == len(find(".scroll"))
    assert not find("th:not([scope])")
    ids = [one.get_attribute("id") for one in find("[id]")]
    assert len(ids) == len(set(ids))
    for one in find("[aria-labelledby]"):
        assert set(one.get_attribute("aria-labelledby").split()) <= set(ids)


def as_read(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows as ``read`` gives them."""
    frame = pd.DataFrame(rows).assign(source="now.csv", samples=[()] * len(rows))
    frame["threads"] = pd.to_numeric(frame["threads"], errors="coerce")
    return frame


def words(html: str) -> str:
    """What a reader sees, with single spaces."""
    body = re.sub(r"<style>.*?</style>|<(title|desc)[^>]*>.*?</\1>", " ", html, flags=re.DOTALL)
    text = re.sub(r"</?(strong|code|a|span|em)\b[^>]*>", "", body)
    text = re.sub(r"<[^>]*>", " ", text)
    return " ".join(text.replace("&#39;", "'").replace("&#34;", '"').split())
