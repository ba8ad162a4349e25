"""The report in a real browser: slider and switches, keyboard, contrast, small screens, and without JavaScript."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.helpers.report_page import compared_rows, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESK = (360, 780), (1280, 900)
# WCAG's contrast of a text with what is painted behind it; the nearest background that is not see-through counts.
CONTRAST = """element => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  let behind = element;
  while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const ground = rgb(getComputedStyle(behind ?? document.body).backgroundColor);
  const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground)].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(page(compared_rows(folder)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: chromium is not installed here (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM)
        yield running
        running.close()


class Opened:
    """A page, and what it said and asked for since it was opened."""

    def __init__(self, browser: Browser, address: str, size: tuple[int, int], **how: Any) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **how)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def one(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def shown(self, selector: str) -> list[str]:
        """data-version of the visible figures that match."""
        return [str(x.get_attribute("data-version")) for x in self.one(selector).all() if x.is_visible()]

    def wait_for(self, truth: str) -> None:
        """As Playwright's own, which the page's policy forbids: it evaluates a text within the page."""
        until = time.monotonic() + 20
        while not self.page.evaluate(truth):
            assert time.monotonic() < until, truth
            self.page.wait_for_timeout(20)

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_it_is_quiet_alone_and_complete(browser: Browser, address: str) -> None:
    with Opened(browser, address, DESK) as it:
        assert it.said == []
        assert {url for url in it.asked if not url.startswith("data:")} == {address}
        widths = it.page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
        assert len(widths) == 17 and all(widths)
        it.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
        assert "Content Security Policy" in it.said[0]  # what was quiet would have been heard


def test_the_slider_moves_by_keyboard_and_by_dragging(browser: Browser, address: str) -> None:
    with Opened(browser, address, DESK, reduced_motion="reduce") as it:  # else it may scroll while the mouse moves
        slider, right = it.one("input[type=range]"), it.one("figure.right")
        before = right.evaluate("x => getComputedStyle(x).clipPath")
        it.one("input[name=view]:checked").focus()
        it.page.keyboard.press("Tab")
        assert it.page.evaluate("document.activeElement.type") == "range"
        assert it.one(".frame:has(input:focus-visible)").count() == 1
        for _ in range(10):
            it.page.keyboard.press("ArrowRight")
        assert slider.input_value() == "60"
        assert slider.get_attribute("aria-valuetext") == "60% noisy, the rest D2SM"
        assert (before, right.evaluate("x => getComputedStyle(x).clipPath")) == (
            "inset(0px 0px 0px 50%)", "inset(0px 0px 0px 60%)"
        )  # fmt: skip
        it.page.keyboard.press("Home")
        assert right.evaluate("x => getComputedStyle(x).clipPath") == "inset(0px 0px 0px 0%)"
        box = slider.bounding_box()
        assert box is not None
        it.page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 20)
        it.page.mouse.down()
        it.page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20)
        it.page.mouse.up()
        assert float(slider.input_value()) == pytest.approx(75, abs=1)


def test_what_is_compared_can_be_chosen(browser: Browser, address: str) -> None:
    with Opened(browser, address, DESK) as it:
        assert (it.shown("figure.left"), it.shown("figure.right")) == (["noisy"], ["D2SM"])
        it.page.get_by_label("Left", exact=True).select_option("clean")
        it.page.get_by_label("Right", exact=True).select_option("L1")
        assert (it.shown("figure.left"), it.shown("figure.right")) == (["clean"], ["L1"])
        it.page.get_by_label("Right", exact=True).select_option("clean")
        assert it.shown(".frame figure") == ["clean"]
        assert it.one(".frame figure:visible").evaluate("x => getComputedStyle(x).clipPath") == "none"
        it.page.get_by_label("Photograph").select_option("1")
        assert it.one("section.picture:visible").get_attribute("aria-label") == "two <script>alert(1)<"
        assert it.one("section.picture:visible input[type=range]").count() == 1


def test_the_segmentation_is_switched(browser: Browser, address: str) -> None:
    with Opened(browser, address, DESK) as it:
        seen = it.one("figure.left img.segmentation")
        assert not seen.is_visible()
        it.one("input[value=image]").focus()
        it.page.keyboard.press("ArrowRight")
        assert seen.is_visible() and 0.3 < float(seen.evaluate("x => getComputedStyle(x).opacity")) < 0.9
        it.page.keyboard.press("ArrowRight")
        assert seen.is_visible() and seen.evaluate("x => getComputedStyle(x).opacity") == "1"
        places = "x => [...x.children].map(image => JSON.stringify(image.getBoundingClientRect()))"
        assert len(set(it.one("figure.left .pair").evaluate(places))) == 1  # the one covers the other
        assert it.one(".legend").inner_text().split() == ["road", "sky"]


def test_the_noise_level_of_the_bars_is_switched(browser: Browser, address: str) -> None:
    with Opened(browser, address, DESK) as it:
        levels = it.one(".level-panel:visible")
        assert [x.get_attribute("data-level") for x in levels.all()] == ["25"]
        it.page.get_by_label("sigma 50").check(force=True)
        assert [x.get_attribute("data-level") for x in levels.all()] == ["50"]
        rect, track = (it.one(f".level-panel:visible {x}").first.bounding_box() for x in ("rect.noisy", "rect.track"))
        assert rect is not None and track is not None and rect["width"] == pytest.approx(track["width"] / 2, rel=0.02)


def test_a_row_leads_to_its_runs(browser: Browser, address: str) -> None:
    with Opened(browser, address, PHONE) as it:
        runs = it.one("#row1 table")
        assert not runs.is_visible()
        it.one("table.numbers a").nth(1).press("Enter")
        runs.wait_for(state="visible")
        assert "ffdnet_d2sm_cpu" in runs.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser: Browser, address: str, scheme: str) -> None:
    with Opened(browser, address, PHONE, color_scheme=scheme, reduced_motion="reduce") as it:
        it.page.evaluate("document.querySelectorAll('details').forEach(x => { x.open = true; })")
        assert it.overflow() == 0
        box = it.one("section .scroll").first
        assert box.evaluate("x => x.scrollWidth > x.clientWidth")  # the table scrolls within its own box
        box.focus()
        it.page.keyboard.press("ArrowRight")
        it.wait_for("document.querySelector('section .scroll').scrollLeft > 0")
        assert it.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        texts = ("h1", "p.note", ".facts dt", "td.best", "td.best small", "tr.paper td", ".numbers .reference td",
                 "nav a", ".choice input:checked + span", ".choice input:not(:checked) + span", "summary small",
                 "select", "figure.left figcaption", ".runs thead th", ".bar .value", ".mark")  # fmt: skip
        low = {text: it.one(text).first.evaluate(CONTRAST) for text in texts}
        assert min(low.values()) >= 4.5, low
        dark = it.one("body").evaluate("x => getComputedStyle(x).backgroundColor") == "rgb(19, 21, 24)"
        assert dark == (scheme == "dark")


def test_without_javascript_every_picture_is_there(browser: Browser, address: str) -> None:
    with Opened(browser, address, PHONE, java_script_enabled=False) as it:
        pictures = it.one(".frame img")
        assert pictures.count() == 16 and all(picture.is_visible() for picture in pictures.all())
        assert it.one(".level-panel:visible").count() == 3
        assert it.one("select:visible, input:visible").count() == 0
        tops = [box["y"] for box in (picture.bounding_box() for picture in pictures.all()) if box]
        assert len(set(tops)) == 16  # one below the other
