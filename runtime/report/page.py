"""The verdict as one page of HTML for whoever signs it: no network, no script, no external file.

report_page.html is the page and report_style.css its looks; the plots come from plots.py.
Everything that is text in the template is made visible and escaped; only our own SVG is not.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from dsconv.atomic import output_file
from dsconv.runtime.verify.grade import LADDER
from dsconv.runtime.verify.verdict import Bucket, LayerError, LimitCheck, Speed, Verdict

from .figures import (
    FIGURES,
    SOURCES,
    SummaryFigure,
    by_how_much,
    check_number,
    count_text,
    date_text,
    end,
    error,
    figure_of,
    floor_of,
    floor_text,
    how_good,
    is_exact,
    last_part,
    limit_text,
    number,
    rate_text,
    reference_speed,
    short,
    size_or_dash,
    sqnr_text,
    start,
    state,
    this_speed,
    visible,
    visible_token,
    why,
)
from .plots import (
    Caption,
    Dot,
    Mark,
    Point,
    dot_rows,
    histogram,
    layer_line,
    scatter,
)

CONTEXT = 200  # characters of the text shown before a token, half as many after it
SHOWN_FILES, SHOWN_FINDINGS, SHOWN_LAYERS, SHOWN_SPEEDS, SHOWN_WORST = 60, 40, 6, 24, 10
KL_AXIS = "KL, nats per token"


@dataclass(frozen=True)
class Plot:
    title: str
    svg: Markup

    @classmethod
    def of(cls, caption: Caption, svg: str) -> Plot:
        return cls(caption.title, Markup(svg))  # text inside was escaped by report_plots


@dataclass(frozen=True)
class Page:
    """What the template shows beside the verdict itself."""

    state: str
    why: str
    checks: tuple[LimitCheck, ...]  # failed ones first
    figures: tuple[SummaryFigure, ...]
    grade: str
    how_good: str
    this: Speed | None
    reference: Speed | None
    kl_plots: tuple[Plot, ...]
    layer_plots: tuple[Plot, ...]
    quality_plots: tuple[Plot, ...]
    lowest_layers: tuple[LayerError, ...]
    policy: str
    style: Markup


def report_html(verdict: Verdict) -> str:
    """The whole page."""
    style = _resource("report_style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = Page(
        state=state(verdict),
        why=why(verdict),
        checks=tuple(sorted(verdict.checks, key=lambda check: check.passed)),
        figures=FIGURES,
        grade=verdict.grade,
        how_good=how_good(verdict),
        this=this_speed(verdict),
        reference=reference_speed(verdict),
        kl_plots=tuple(_kl_plots(verdict)),
        layer_plots=(_layer_errors(verdict.layers),) if verdict.layers else (),
        quality_plots=tuple(_quality_plots(verdict)),
        lowest_layers=tuple(sorted(verdict.layers, key=_damage)[:SHOWN_LAYERS]),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
    )
    return _environment().from_string(_resource("report_page.html")).render(v=verdict, page=page)


def write_report(verdict: Verdict, path: Path) -> None:
    """
    Raises:
        OutputError: the file cannot be written.
    """
    page = report_html(verdict)
    with output_file(path, overwrite=True) as partial:
        partial.write_text(page, encoding="utf-8")


def _resource(name: str) -> str:
    return resources.files("dsconv.runtime.report").joinpath(name).read_text("utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals.update(
        by_how_much=by_how_much,
        check_number=check_number,
        context=CONTEXT,
        count_text=count_text,
        figure_of=figure_of,
        floor_of=floor_of,
        floor_text=floor_text,
        ladder=LADDER,
        limit_text=limit_text,
        lowest_matrix=lowest_matrix,
        sources=SOURCES,
        shown_files=SHOWN_FILES,
        shown_findings=SHOWN_FINDINGS,
        shown_speeds=SHOWN_SPEEDS,
        shown_worst=SHOWN_WORST,
    )
    environment.filters.update(
        date=date_text,
        end=end,
        error=error,
        last_part=last_part,
        number=number,
        rate=rate_text,
        share=lambda value: "–" if value is None else number(value, is_share=True),
        short=short,
        size=size_or_dash,
        sqnr=sqnr_text,
        start=start,
        token=visible_token,
    )
    return environment


def _kl_plots(verdict: Verdict) -> Iterator[Plot]:
    yield _kl_histogram(verdict)
    for of, title in (
        ("position", "KL by position in the window"),
        ("confidence", "KL by the reference's confidence"),
    ):
        buckets = [bucket for bucket in verdict.buckets if bucket.of == of]
        if buckets:
            yield _kl_by(verdict, buckets, title)


def _quality_plots(verdict: Verdict) -> Iterator[Plot]:
    """Where there is something to compare with."""
    shown = verdict.speeds[:SHOWN_SPEEDS]
    if len(shown) > 1 and any(speed.kl_mean is not None for speed in shown):
        yield _quality(verdict, shown, "size", [speed.size_bytes / 1e6 for speed in shown], "MB")
        rates = [speed.decode_tokens_per_second for speed in shown]
        if sum(rate is not None for rate in rates) > 1:
            known = [math.nan if rate is None else rate for rate in rates]
            yield _quality(verdict, shown, "decode speed", known, "tokens/s")


def _kl_limit(verdict: Verdict) -> float | None:
    """The limit on the mean KL, where there is one; not an earlier verdict's figure."""
    limits = [check.limit for check in verdict.checks if figure_of(check) is FIGURES[0]]
    return limits[0] if limits else None


def _kl_histogram(verdict: Verdict) -> Plot:
    s, floor, limit = verdict.summary, floor_of(verdict, FIGURES[0]), _kl_limit(verdict)
    marks = [
        Mark(f"mean {number(s.kl_mean)}", s.kl_mean, "mean"),
        Mark(f"99 % below {number(s.kl_p99)}", s.kl_p99, "tail"),
    ]
    if floor is not None:
        marks.append(Mark(f"noise floor {number(floor)}", floor, "floor"))
    if limit is not None:
        marks.append(Mark(f"limit of the mean {number(limit)}", limit, "limit"))
    odd = s.tokens - int(np.isfinite(verdict.scores.kl).sum())
    text = f"{count_text(odd, 'token')} without a finite KL. " if odd else ""
    text += (
        f"Half of {count_text(s.tokens, 'token')} are below {number(s.kl_median)}: "
        + ", ".join(mark.label for mark in marks)
    )
    caption = Caption("kl", "KL of the tokens", text)
    return Plot.of(caption, histogram(caption, verdict.scores.kl, marks, KL_AXIS))


def _kl_by(verdict: Verdict, buckets: list[Bucket], title: str) -> Plot:
    dots = [Dot(b.name, b.summary.kl_mean, b.summary.kl_stderr) for b in buckets]
    text = "; ".join(f"{dot.label}: {number(dot.value)}" for dot in dots)
    caption = Caption(f"kl-{buckets[0].of}", title, text)
    floor, limit = floor_of(verdict, FIGURES[0]), _kl_limit(verdict)
    return Plot.of(caption, dot_rows(caption, dots, floor, limit, f"mean {KL_AXIS}"))


def _damage(layer: LayerError) -> float:
    """Sorts the worst first; what is not a number is worse than any figure."""
    return -math.inf if math.isnan(layer.sqnr_db) else layer.sqnr_db


def _layer_errors(layers: tuple[LayerError, ...]) -> Plot:
    worst = min(layers, key=_damage)
    exact = sum(is_exact(layer.sqnr_db) for layer in layers)
    text = "every layer is exact"
    if exact < len(layers):
        text = f"lowest: layer {worst.layer}, {number(worst.sqnr_db)} dB"
    caption = Caption("layers", "Signal to noise of each layer's output", text)
    values = [layer.sqnr_db for layer in layers]
    names = [str(layer.layer) for layer in layers]
    return Plot.of(caption, layer_line(caption, values, names, "SQNR, dB (high is good)", text))


def lowest_matrix(layer: LayerError) -> str:
    """The matrix of the layer with the lowest SQNR, where any is known."""
    known = [(value, name) for name, value in layer.matrices.items() if value is not None]
    if not known:
        return "–"
    value, name = min(known, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])
    return f"{short(name)} {number(value)}"


def _quality(
    verdict: Verdict, speeds: tuple[Speed, ...], what: str, xs: list[float], unit: str
) -> Plot:
    """Numbers stand for the rows of the table; the reference has no KL of its own."""
    kinds = {verdict.circumstances.artifact: "this", verdict.circumstances.reference: "reference"}
    points = [
        Point(
            {"this": "this", "reference": "reference"}.get(kind, str(row)),
            x,
            0.0 if speed.kl_mean is None else speed.kl_mean,
            kind,
        )
        for row, (speed, x) in enumerate(zip(speeds, xs, strict=True), start=1)
        for kind in [kinds.get(speed.name, "other")]
        if math.isfinite(x) and (speed.kl_mean is not None or kind == "reference")
    ]
    text = "; ".join(f"{p.label}: {p.x:.4g} {unit}, KL {number(p.y)}" for p in points)
    caption = Caption(f"quality-{what.split()[0]}", f"Quality and {what}", text)
    floor, label = floor_of(verdict, FIGURES[0]), f"mean {KL_AXIS}"
    return Plot.of(caption, scatter(caption, points, floor, f"{what}, {unit}", label))
