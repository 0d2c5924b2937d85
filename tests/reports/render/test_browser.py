"""The page in a browser: on a phone, in dark mode, by keyboard, without a network."""

import itertools
import json
import shutil

import pandas as pd
import pytest


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
    """The page, on a light screen of 1280 pixels."""
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
