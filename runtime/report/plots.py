"""Plots as inline SVG, in user units of about a pixel on a phone. Pure functions of numbers.

The page's style sheet colours the classes; each plot carries a title and a description for those
who do not see it. Whatever the numbers, nothing is drawn outside the view box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from .axis import Axis, linear_axis, log_axis, tick_text
from .figures import is_exact, visible

WIDTH = 340.0
RIGHT = WIDTH - 12.0
LINE = 14.0  # height of a line of text
PLOT, TALL_PLOT = 130.0, 210.0  # height of what is inside the axes
CHARACTER = 6.2  # width of a character, for labels that must fit
BINS_PER_DECADE = 4
EXACT_BAND = 24.0  # height of what is above the axis
ALL_EXACT = "every layer is exact"
MANY_LAYERS = 60


@dataclass(frozen=True)
class Caption:
    """`name` is unique on the page; `description` says in words what is to be seen."""

    name: str
    title: str
    description: str


@dataclass(frozen=True)
class Mark:
    """A line at a value; `kind` is its class: mean, tail, floor, limit."""

    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Dot:
    """A row: a mean with its standard error."""

    label: str
    value: float
    error: float


@dataclass(frozen=True)
class Point:
    """`kind`: this, reference, other. Without y it stands at the bottom."""

    label: str
    x: float
    y: float
    kind: str


def histogram(
    caption: Caption, values: NDArray[np.float64], marks: Sequence[Mark], x_label: str
) -> str:
    """Share of the values per quarter of a decade; what is smaller than the axis counts in the
    first bar. Each mark has a line of text of its own above the bars."""
    known = values[np.isfinite(values)]
    marks = sorted((m for m in marks if math.isfinite(m.value)), key=lambda mark: mark.value)
    axis = log_axis([*known.tolist(), *(mark.value for mark in marks)])
    bins = max(1, round(math.log10(axis.high / axis.low) * BINS_PER_DECADE))
    places = np.array([axis.share(value) for value in known.tolist()])
    counts = np.bincount(np.minimum((places * bins).astype(int), bins - 1), minlength=bins)
    shares = counts / max(len(known), 1)
    left, top = 40.0, 6 + LINE * len(marks)
    bottom = top + TALL_PLOT
    y_axis = linear_axis([*shares.tolist()], from_zero=True)
    parts = [_y_axis(y_axis, left, top, bottom, is_share=True)]
    width = (RIGHT - left) / bins
    for index, share in enumerate(shares.tolist()):
        height = y_axis.share(share) * TALL_PLOT
        if height > 0:
            parts.append(_rect("bar", left + index * width, bottom - height, width * 0.9, height))
    labels = []  # over all lines
    for row, mark in enumerate(marks):
        x = _between(left, RIGHT, axis.share(mark.value))
        parts.append(_line(f"mark {mark.kind}", x, 6 + LINE * row, x, bottom))
        labels.append(_label_beside(mark.label, x, 6 + LINE * row + 9, left))
    parts += labels
    if not len(known):
        middle = (left + RIGHT) / 2
        parts.append(_text("axis", middle, bottom - 20, "no token has a finite figure", "middle"))
    parts.append(_x_axis(axis, left, bottom, x_label))
    return _svg(caption, bottom + 36, parts)


def dot_rows(
    caption: Caption, dots: Sequence[Dot], floor: float | None, limit: float | None, x_label: str
) -> str:
    """One row per group on a logarithmic axis: mean, a bar of two standard errors to each side;
    the noise floor as an area, the limit as a line."""
    extra = [value for value in (floor, limit) if value is not None]
    ends = [dot.value + 2 * dot.error for dot in dots]
    axis = log_axis([*(dot.value for dot in dots), *ends, *extra])
    left, right, top = 76.0, WIDTH - 58.0, 8.0
    bottom = top + 26.0 * len(dots)
    parts = []
    if floor is not None and floor > 0:
        parts.append(_rect("area", left, top, axis.share(floor) * (right - left), bottom - top))
    for tick in axis.ticks:
        x = _between(left, right, axis.share(tick))
        parts.append(_line("grid", x, top, x, bottom))
    if limit is not None and math.isfinite(limit):
        x = _between(left, right, axis.share(limit))
        parts.append(_line("mark limit", x, top, x, bottom))
    for row, dot in enumerate(dots):
        y = top + 26.0 * row + 13
        x = _between(left, right, axis.share(dot.value))
        spread = [dot.value - 2 * dot.error, dot.value + 2 * dot.error]
        low, high = (_between(left, right, axis.share(value)) for value in spread)
        parts.append(_text("name", left - 8, y + 4, _fit(dot.label, left - 8), "end"))
        if math.isfinite(dot.value):
            parts.append(_line("error", low, y, high, y))
            parts.append(_circle("dot", x, y, 4))
        parts.append(
            _text(
                "value", right + 6, y + 4, f"{dot.value:.3g}" if math.isfinite(dot.value) else "n/a"
            )
        )
    parts.append(_x_axis(axis, left, bottom, x_label, right))
    return _svg(caption, bottom + 36, parts)


def layer_line(
    caption: Caption, values: Sequence[float], names: Sequence[str], y_label: str, lowest: str
) -> str:
    """One point per layer in order, high is good; the lowest carries a label.

    The axis is that of the layers with an error. Exact ones (`EXACT_DB` and more, infinite) stand
    in a band of their own above it, broken ones (NaN) at the bottom.
    """
    exact = [is_exact(value) for value in values]
    axis = linear_axis([v for v, e in zip(values, exact, strict=True) if not e])
    left, band = 40.0, 8.0 + LINE
    top = band + (EXACT_BAND if any(exact) else 0.0)
    bottom = top + PLOT
    xs = [
        _between(left + 8, RIGHT - 6, index / (len(values) - 1) if len(values) > 1 else 0.5)
        for index in range(len(values))
    ]
    ys = [
        band + 8 if e else _between(bottom, top, axis.share(v))
        for v, e in zip(values, exact, strict=True)
    ]
    parts = [_y_axis(axis, left, top, bottom)] if not all(exact) or not values else []
    if any(exact):
        parts.append(_rect("area", left, band, RIGHT - left, 16))
        parts.append(_text("tick", left - 5, band + 12, "exact", "end"))
    parts += _lines_between(xs, ys, exact)
    worst = min(range(len(values)), key=lambda i: (not math.isnan(values[i]), values[i]), default=0)
    small = 1.5 if len(values) > MANY_LAYERS else 2.5
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        is_worst = index == worst and not exact[index]
        kind = "dot worst" if is_worst else "dot exact" if exact[index] else "dot"
        parts.append(_circle(kind, x, y, 4 if is_worst else small))
    if values and not exact[worst]:
        below = ys[worst] + 16 if ys[worst] < bottom - 20 else ys[worst] - 8
        parts.append(_label_beside(lowest, xs[worst], below, left, "worst"))
    elif values:
        parts.append(_text("axis", (left + RIGHT) / 2, (top + bottom) / 2, ALL_EXACT, "middle"))
    step = max(1, math.ceil(len(values) / 6))
    for index in range(0, len(values), step):
        parts.append(_text("tick", xs[index], bottom + 14, _fit(names[index], 40), "middle"))
    parts.append(_text("axis", left, 11, y_label))
    parts.append(_text("axis", (left + RIGHT) / 2, bottom + 30, "layer", "middle"))
    return _svg(caption, bottom + 36, parts)


def _lines_between(xs: Sequence[float], ys: Sequence[float], exact: Sequence[bool]) -> list[str]:
    """Along neighbours that both have an error."""
    lines, run = [], list[str]()
    for x, y, is_gap in [*zip(xs, ys, exact, strict=True), (0.0, 0.0, True)]:
        if not is_gap:
            run.append(f"{_round(x)},{_round(y)}")
            continue
        if len(run) > 1:
            lines.append(f'<polyline class="line" points="{" ".join(run)}"/>')
        run = []
    return lines


def scatter(
    caption: Caption, points: Sequence[Point], floor: float | None, x_label: str, y_label: str
) -> str:
    """Quality (logarithmic, low is good) against size or speed (from zero)."""
    left, top = 44.0, 8.0 + LINE
    bottom = top + PLOT
    x_axis = linear_axis([point.x for point in points], from_zero=True)
    y_axis = log_axis([*(point.y for point in points), *([] if floor is None else [floor])])
    parts = []
    if floor is not None and floor > 0:
        height = y_axis.share(floor) * PLOT
        parts.append(_rect("area", left, bottom - height, RIGHT - left, height))
    parts.append(_y_axis(y_axis, left, top, bottom))
    parts.append(_x_axis(x_axis, left, bottom, x_label, RIGHT - 8))
    for point in points:
        x = _between(left, RIGHT - 8, x_axis.share(point.x))
        y = _between(bottom, top, y_axis.share(point.y))
        parts.append(_circle(f"dot {point.kind}", x, y, 5))
        parts.append(_label_beside(point.label, x + 3, min(y + 4, bottom - 8), left, point.kind))
    parts.append(_text("axis", left, 11, y_label))
    return _svg(caption, bottom + 36, parts)


def _svg(caption: Caption, height: float, parts: Sequence[str]) -> str:
    name = quoteattr(caption.name)[1:-1]
    return (
        f'<svg class="plot" viewBox="0 0 {_round(WIDTH)} {_round(height)}" role="img" '
        f'aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{_safe(caption.title)}</title>'
        f'<desc id="{name}-text">{_safe(caption.description)}</desc>{"".join(parts)}</svg>'
    )


def _x_axis(axis: Axis, left: float, bottom: float, label: str, right: float = RIGHT) -> str:
    parts = [_line("base", left, bottom, right, bottom)]
    for tick in axis.ticks:
        x = _between(left, right, axis.share(tick))
        parts.append(_line("base", x, bottom, x, bottom + 3))
        parts.append(_text("tick", x, bottom + 14, tick_text(tick), "middle"))
    parts.append(_text("axis", (left + right) / 2, bottom + 30, label, "middle"))
    return "".join(parts)


def _y_axis(axis: Axis, left: float, top: float, bottom: float, is_share: bool = False) -> str:
    parts = []
    for tick in axis.ticks:
        y = _between(bottom, top, axis.share(tick))
        text = f"{100 * tick:.3g} %" if is_share else tick_text(tick)
        parts.append(_line("grid", left, y, RIGHT, y))
        parts.append(_text("tick", left - 5, y + 4, text, "end"))
    return "".join(parts)


def _label_beside(text: str, x: float, y: float, left: float, kind: str = "") -> str:
    """To the right of x, or to its left where the right has no room."""
    fits_right = x + 5 + CHARACTER * len(text) <= WIDTH
    if fits_right or x - left < WIDTH - x:
        return _text(f"label {kind}".rstrip(), x + 5, y, _fit(text, WIDTH - x - 5))
    return _text(f"label {kind}".rstrip(), x - 5, y, _fit(text, x - 5), "end")


def _safe(text: str) -> str:
    return escape(visible(text))


def _fit(text: str, width: float) -> str:
    most = max(1, int(width / CHARACTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _between(start: float, stop: float, share: float) -> float:
    return start + (stop - start) * share


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line class="{kind}" x1="{_round(x1)}" y1="{_round(y1)}" '
        f'x2="{_round(x2)}" y2="{_round(y2)}"/>'
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{_round(x)}" y="{_round(y)}" '
        f'width="{_round(width)}" height="{_round(height)}"/>'
    )


def _circle(kind: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{kind}" cx="{_round(x)}" cy="{_round(y)}" r="{_round(radius)}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{_round(x)}" y="{_round(y)}" text-anchor="{anchor}">'
        f"{_safe(text)}</text>"
    )
