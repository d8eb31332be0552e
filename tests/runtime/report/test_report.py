"""The page: well-formed, the verdict's own figures, nothing of a model's text as markup."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from verdicts import ARTIFACT, HOSTILE, broken, healthy, hostile, scores_of

from dsconv.errors import OutputError
from dsconv.runtime.report.figures import (
    FIGURES,
    by_how_much,
    date_text,
    figure_of,
    floor_text,
    number,
    short,
    state,
    visible,
    why,
)
from dsconv.runtime.report.page import report_html, write_report
from dsconv.runtime.verify.metrics import summarize
from dsconv.runtime.verify.verdict import LayerError, LimitCheck, Verdict

VOID = {"meta", "link", "br", "img", "path", "rect", "line", "circle", "polyline"}
VERDICTS = [healthy, broken, hostile]


class Page(HTMLParser):
    """Tags with their attributes and text; notes tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.disorder: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.data: list[tuple[str, str]] = []  # value, what is shown
        self._value: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self._value = dict(attrs)["value"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.disorder.append(tag)
        self._value = None if tag == "data" else self._value

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._value is not None:
            self.data.append((self._value, data))

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("make", VERDICTS)
def test_page_is_well_formed_and_described(make: type[Verdict]) -> None:
    page = Page(report_html(make()))
    assert page.open == []
    assert page.disorder == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    plots = [svg for svg in page.named("svg") if svg.get("class") == "plot"]
    assert plots
    for svg in plots:
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(ids)
    assert len(page.named("title")) == len(plots) + 1  # and the page's own
    assert len(page.named("h1")) == 1
    heads = [th for th in page.named("th") if th["role"] == "columnheader"]
    assert heads
    assert all(th["scope"] == "col" for th in heads)
    assert page.named("html") == [{"lang": "en"}]


@pytest.mark.parametrize("make", VERDICTS)
def test_nothing_is_loaded_and_nothing_runs(make: type[Verdict]) -> None:
    html = report_html(make())
    page = Page(html)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "header",
        "main",
        "section",
    }
    allowed |= {"p", "h1", "h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "data", "span"}
    allowed |= {"b", "div", "ul", "ol", "li", "dl", "dt", "dd", "mark", "bdi", "figure", "desc"}
    allowed |= {"figcaption", "svg", "text", *VOID} - {"img"}
    assert {tag for tag, _ in page.tags} <= allowed
    for tag, attributes in page.tags:
        assert not {"src", "style", "action", "srcset", "xlink:href"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:,") == "data:,"
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|http", style[1])
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(m["content"] for m in page.named("meta") if "http-equiv" in m)
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert "unsafe" not in policy


def test_hostile_text_is_shown_and_is_not_markup() -> None:
    html = report_html(hostile())
    assert HOSTILE not in html
    text = "".join(Page(html).text)
    assert HOSTILE in text  # as text
    for character in "\u202e\x1b\x00\ud800":
        assert character not in html
        assert visible(character) == f"‹U+{ord(character):04X}›"
        assert visible(character) in text
    html.encode("utf-8")


@pytest.mark.parametrize("make", [healthy, broken])
def test_figures_are_those_of_the_verdict(make: type[Verdict]) -> None:
    verdict = make()
    page = Page(report_html(verdict))
    values = [float(value) for value, _ in page.data]
    others = (verdict.tasks[0].macro, verdict.tasks[0].majority)
    for figure in FIGURES:
        assert figure.take(verdict.summary) in values, figure.label
    for expected in (
        *(check.value for check in verdict.checks),
        *(bucket.summary.kl_mean for bucket in verdict.buckets),
        *(speed.size_bytes for speed in verdict.speeds),
        *(token.kl for token in verdict.worst_tokens),
        min(layer.sqnr_db for layer in verdict.layers),
        verdict.tasks[0].artifact_accuracy,
        verdict.tasks[0].artifact_cut,
        *(shares.artifact_accuracy for shares in others if shares),
    ):
        assert expected in values
    for value, shown in page.data:
        if shown.endswith("B"):
            continue
        scale = 100 if shown.endswith("%") else 1
        read = float(shown.removesuffix("%"))
        assert math.isclose(read, float(value) * scale, rel_tol=5e-4, abs_tol=1e-12)


def test_verdict_stands_on_top_with_its_reason() -> None:
    text = "".join(Page(report_html(broken())).text)
    assert text.index("Failed") < text.index("3 of 3 checks failed") < text.index("Checks")
    assert "0.1025 above the limit" in text
    assert "model.layers.11.mlp.down_proj" in text
    assert "quantize the checkpoint again" in text
    passed = "".join(Page(report_html(healthy())).text)
    assert "All 3 checks hold on 4,096 tokens" in passed
    assert "What is wrong" not in passed


def test_failed_checks_come_first() -> None:
    verdict = healthy()
    checks = (*verdict.checks, LimitCheck("max-ppl-ratio", "the one that fails", 1.5, 1.1, True))
    text = "".join(Page(report_html(replace(verdict, checks=checks))).text)
    table = text[text.index("Result") :]
    assert table.index("the one that fails") < table.index("max-kl")


def test_noise_floor_stands_beside_every_figure() -> None:
    verdict = healthy()
    html = report_html(verdict)
    assert verdict.noise_floor is not None
    for figure in FIGURES:
        assert figure.text(figure.take(verdict.noise_floor.summary)) in html
    assert "The noise floor was not measured." in report_html(replace(verdict, noise_floor=None))


def test_parts_that_were_not_measured_are_left_out() -> None:
    small = replace(healthy(), layers=(), free_running=None, tasks=(), speeds=(), buckets=())
    text = "".join(Page(report_html(replace(small, worst_tokens=(), checks=()))).text)
    for title in ("Layers", "Writing freely", "Tasks", "Size, speed", "worst tokens", "Checks"):
        assert title not in text
    assert "Not judged" in text


def test_large_verdict_is_a_small_page() -> None:
    scores = scores_of(np.random.default_rng(0).exponential(0.02, 300_000))
    verdict = replace(healthy(), scores=scores, summary=summarize(scores))
    layer = LayerError(0, "model.layers.0", 30.0, 0.999, {f"m{i}": 20.0 for i in range(300)})
    files = {f"model-{index:05}-of-01000.safetensors": "0" * 64 for index in range(1000)}
    verdict = replace(
        verdict,
        layers=(layer,) * 128,
        findings=broken().findings * 500,
        worst_tokens=hostile().worst_tokens * 100,
        speeds=verdict.speeds * 100,
        circumstances=replace(verdict.circumstances, artifact_files=files),
    )
    html = report_html(verdict)
    assert len(html.encode()) < 200_000
    assert "940 more files not shown" in html


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (LimitCheck("max-kl", "KL", 0.02, 0.03, True), "0.01 below the limit"),
        (LimitCheck("max-kl", "KL", 0.05, 0.03, True), "0.02 above the limit"),
        (LimitCheck("max-kl", "KL", 0.03, 0.03, True), "at the limit"),
        (
            LimitCheck("max-kl", "KL", 0.031, 0.03, True, 0.002),
            "0.001 above, within the 0.002 allowed for chance",
        ),
        (
            LimitCheck("max-kl", "KL", 0.04, 0.03, True, 0.002),
            "0.01 above the limit, 0.002 allowed for chance",
        ),
        (LimitCheck("min-top1", "top", 0.9, 0.93, False), "3 points below the limit"),
        (LimitCheck("min-top1", "top", 0.95, 0.93, False), "2 points above the limit"),
        (LimitCheck("max-kl", "KL", math.nan, 0.03, True), "not a number, which fails"),
        (LimitCheck("max-kl", "KL", None, 0.03, True), "not measured, which fails"),
    ],
)
def test_by_how_much(check: LimitCheck, text: str) -> None:
    assert by_how_much(check) == text


def test_check_finds_its_figure() -> None:
    names = {
        "max-kl": 0,
        "--max-kl": 0,
        "max_kl_p99": 3,
        "min-top1": 6,
        "max-probability-shift": 7,
        "max-perplexity-ratio": 10,
    }
    for name, index in names.items():
        assert figure_of(LimitCheck(name, "", 1.0, 1.0, True)) is FIGURES[index]
    assert figure_of(LimitCheck("max-loop-rate", "", 1.0, 1.0, True)) is None


def test_baseline_checks_have_a_noise_floor() -> None:
    verdict = healthy()
    assert verdict.noise_floor is not None
    noise = verdict.noise_floor.summary
    expected = {
        "baseline-kl": f"{noise.kl_mean:.4g}".replace("e-0", "e-"),
        "baseline-top1": f"{100 * (1 - noise.top1_agreement):.4g} %",
        "baseline-ppl": f"{math.log(noise.artifact_perplexity / noise.reference_perplexity):.4g}",
    }
    for name, floor in expected.items():
        check = LimitCheck(name, "", 0.01, 0.01, True, 0.002, "baseline")
        assert floor_text(verdict, figure_of(check)) == floor
        text = "".join(Page(report_html(replace(verdict, checks=(check,)))).text)
        assert "from the baseline" in text
        assert "limit of the mean" not in text  # an earlier figure is no limit in the plots


def test_reason_names_the_closest_check() -> None:
    verdict = healthy()
    checks = (
        LimitCheck("max-kl", "mean KL, nats per token", 0.001, 0.03, True),
        LimitCheck("min-top1", "same top token", 0.931, 0.93, False),
    )
    assert "the closest is same top token 93.1 %" in why(replace(verdict, checks=checks))
    assert state(replace(verdict, checks=())) == "Not judged"
    assert state(replace(verdict, checks=(), findings=broken().findings)) == "Failed"


def test_numbers_in_words() -> None:
    values = (0.0123456, 1e-5, 1.5e20, None, math.nan, math.inf, 0.0)
    texts = ("0.01235", "1e-5", "1.5e20", "not measured", "not a number", "infinite", "0")
    assert tuple(map(number, values)) == texts
    assert number(0.99987, is_share=True) == "99.99 %"
    assert date_text("2026-01-31T10:30:00+01:00") == "2026-01-31 09:30 UTC"
    assert date_text("yesterday") == "yesterday"
    assert short("abcdefghij", 5) == "ab…ij"
    assert len(short("x" * 999)) == 160


def test_colours_can_be_read() -> None:
    """WCAG 2: 4.5 between text and what it stands on, in both schemes and on paper."""
    html = report_html(healthy())
    schemes = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        for text in ("text", "quiet", "accent", "good", "bad"):
            for ground in ("ground", "panel"):
                assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert _contrast(colours["text"], colours["mark"]) >= 4.5


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_write_report(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    write_report(healthy(), path)
    assert ARTIFACT in path.read_text("utf-8")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(healthy(), path / "below a file.html")
