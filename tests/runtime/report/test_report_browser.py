"""The page in a real browser: no errors, no requests, no sideways scrolling, printable."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser, find_browser
from verdicts import broken, healthy, hostile

from dsconv.runtime.report.page import report_html
from dsconv.runtime.verify.verdict import Verdict

CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)

# Texts of plots that stick out of their view box, as the browser's own fonts draw them.
OUTSIDE = """[...document.querySelectorAll("svg.plot text")].filter(text => {
  const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
  return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1
    || box.y + box.height > view.height + 1;
}).map(text => text.textContent)"""
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(autouse=True)
def _fresh(tab: Tab) -> None:
    tab.messages.clear()
    tab.requests.clear()


@pytest.mark.parametrize("make", [healthy, broken, hostile])
def test_opens_clean_on_every_screen(tab: Tab, tmp_path: Path, make: type[Verdict]) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(make()), encoding="utf-8")
    for width in (1280, 768, 360):
        for scheme in ("light", "dark"):
            tab.open(page, width, scheme=scheme)
            assert tab.evaluate(WIDTH) == width
            assert tab.evaluate(OUTSIDE) == []
            ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            # The style applies, so the policy names the right hash.
            assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert tab.messages == []
    assert set(tab.requests) == {page.as_uri()}
    assert tab.evaluate("document.scripts.length + document.images.length") == 0
    assert tab.pdf().startswith(b"%PDF")
    picture = tmp_path / "page.png"
    tab.screenshot(picture)
    assert struct.unpack(">II", picture.read_bytes()[16:24])[0] == 360


def test_hostile_text_survives_as_text(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(hostile()), encoding="utf-8")
    tab.open(page, 360)
    assert "<script src=" in tab.evaluate("document.body.innerText")
    marked = 'document.querySelector("mark").getBoundingClientRect().height'
    assert tab.evaluate(marked) > 0


def test_these_checks_can_fail(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><title>bad</title><meta name="viewport" content="width=device-width">'
        '<div style="width: 2000px">wide</div><img src="http://example.com/x.png">'
        '<svg class="plot" viewBox="0 0 50 20"><text x="40" y="10">sticks out</text></svg>'
        "<script>console.error('message')</script>",
        encoding="utf-8",
    )
    tab.open(page, 1280)
    assert tab.evaluate(WIDTH) >= 2000
    assert tab.evaluate(OUTSIDE) == ["sticks out"]
    assert any("message" in message for message in tab.messages)
    assert "http://example.com/x.png" in tab.requests
