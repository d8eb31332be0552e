"""Plots: where things stand, and that nothing leaves the view box whatever the numbers."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from verdicts import HOSTILE

from dsconv.runtime.report.axis import Axis, linear_axis, log_axis, tick_text
from dsconv.runtime.report.plots import (
    Caption,
    Dot,
    Mark,
    Point,
    dot_rows,
    histogram,
    layer_line,
    scatter,
)

CAPTION = Caption("plot", "title", HOSTILE)
NAN, INF = math.nan, math.inf
AWKWARD = [
    [],
    [0.0],
    [0.0, 0.0, 0.0],
    [0.5],
    [0.3, 0.3, 0.3],
    [NAN],
    [NAN, INF, -INF, 0.1],
    [1e-300, 1e300],
    [5e-324, 1e-323],
    [-1e300, 1e300],
    [-40.0, -3.0],
    [1.0, 1.0 + 1e-15],
    [1e15, 1e15 + 1],
]


def inside(svg: str) -> ElementTree.Element:
    """Parse; every coordinate is a finite number within the view box."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        a = element.attrib
        xs = [a[name] for name in ("x", "x1", "x2", "cx") if name in a]
        ys = [a[name] for name in ("y", "y1", "y2", "cy") if name in a]
        for pair in a.get("points", "").split():
            x, y = pair.split(",")
            xs.append(x)
            ys.append(y)
        if element.tag == "rect":
            assert float(a["width"]) >= 0
            assert float(a["height"]) >= 0
            xs.append(str(float(a["x"]) + float(a["width"])))
            ys.append(str(float(a["y"]) + float(a["height"])))
        assert all(-0.11 <= float(x) <= width + 0.11 for x in xs), a
        assert all(-0.11 <= float(y) <= height + 0.11 for y in ys), a
    return root


def by_class(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("class") == kind]


@pytest.mark.parametrize("values", AWKWARD)
def test_awkward_figures_stay_inside(values: list[float]) -> None:
    marks = [Mark(HOSTILE, value, "mean") for value in values]
    inside(histogram(CAPTION, np.array(values), marks, "x"))
    for floor, limit in itertools.product((None, 0.0, NAN, 1e300, *values), repeat=2):
        dots = [Dot(HOSTILE, value, value) for value in values]
        inside(dot_rows(CAPTION, dots, floor, limit, "x"))
    inside(layer_line(CAPTION, values, [str(v) for v in values], "y", HOSTILE))
    finite = [value for value in values if math.isfinite(value)]
    points = [Point(HOSTILE, x, y, "other") for x in finite for y in values]
    for floor in (None, NAN, 0.0, 1e300):
        inside(scatter(CAPTION, points, floor, "x", "y"))


@pytest.mark.parametrize("values", AWKWARD)
@pytest.mark.parametrize("from_zero", [False, True])
def test_axes_have_order_and_few_ticks(values: list[float], from_zero: bool) -> None:
    for axis in (log_axis(values), linear_axis(values, from_zero)):
        assert axis.low < axis.high
        assert 1 <= len(axis.ticks) <= 8
        assert all(0.0 <= axis.share(value) <= 1.0 for value in (*values, NAN, INF, -INF))
        assert all(len(tick_text(tick)) <= 8 for tick in axis.ticks)


def test_axis_places_values() -> None:
    axis = Axis(1e-4, 1.0, True)
    assert [axis.share(value) for value in (0.0, 1e-4, 1e-2, 1.0, 7.0)] == [0, 0, 0.5, 1, 1]
    assert axis.ticks == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert log_axis([0.002, 0.3]) == Axis(1e-3, 1.0, True)
    assert linear_axis([3.0, 41.0]) == Axis(0, 50, False)
    assert linear_axis([22.0, 34.0]).ticks == [20, 25, 30, 35]
    assert list(map(tick_text, (0.01, 1e-6, 2e8, -1e7, 250, 0))) == [
        *("0.01", "10⁻⁶", "2×10⁸", "-10⁷", "250", "0"),
    ]


def test_histogram_bars_are_the_counts() -> None:
    values = np.exp(np.random.default_rng(3).normal(-5, 1.5, 5000))
    root = inside(histogram(CAPTION, values, [], "x"))
    axis = log_axis(values.tolist())
    edges = np.arange(np.log10(axis.low), np.log10(axis.high) + 0.01, 0.25)
    expected = np.histogram(np.log10(values), bins=edges)[0]
    heights = np.array([float(bar.attrib["height"]) for bar in by_class(root, "bar")])
    seen = expected[expected > 0]
    tallest = heights.max()
    assert len(heights) == len(seen)
    np.testing.assert_allclose(heights / tallest, seen / seen.max(), atol=0.1 / tallest)


def test_small_and_zero_values_count_in_the_first_bar() -> None:
    root = inside(histogram(CAPTION, np.array([0.0, 1e-30, 1e-30, 0.5]), [], "x"))
    first, last = by_class(root, "bar")
    assert float(first.attrib["height"]) == pytest.approx(3 * float(last.attrib["height"]), abs=0.2)


def test_dots_stand_in_order_with_their_figures() -> None:
    dots = [Dot(str(value), value, value / 10) for value in (0.001, 0.01, 0.1)]
    root = inside(dot_rows(CAPTION, dots, 0.002, 0.05, "x"))
    first, middle, last = (float(dot.attrib["cx"]) for dot in by_class(root, "dot"))
    assert middle - first == pytest.approx(last - middle, abs=0.2)  # equal factors
    (area,) = by_class(root, "area")
    assert first < float(area.attrib["x"]) + float(area.attrib["width"]) < middle
    (limit,) = by_class(root, "mark limit")
    assert middle < float(limit.attrib["x1"]) < last
    assert [text.text for text in by_class(root, "value")] == ["0.001", "0.01", "0.1"]


def test_worst_layer_is_marked() -> None:
    values = [30.0, INF, 12.0, 25.0]
    root = inside(layer_line(CAPTION, values, ["0", "1", "2", "3"], "dB", "layer 2"))
    (worst,) = by_class(root, "dot worst")
    others = by_class(root, "dot")
    assert all(float(worst.attrib["cy"]) > float(dot.attrib["cy"]) for dot in others)
    broken = inside(layer_line(CAPTION, [30.0, NAN, 12.0], ["0", "1", "2"], "dB", "layer 1"))
    (worst,) = by_class(broken, "dot worst")
    first, last = (float(dot.attrib["cx"]) for dot in by_class(broken, "dot"))
    assert first < float(worst.attrib["cx"]) < last  # not a number is worse than 12 dB


def test_better_points_stand_lower() -> None:
    points = [Point("a", 100.0, 0.1, "this"), Point("b", 200.0, 0.001, "other")]
    root = inside(scatter(CAPTION, points, 1e-4, "size", "KL"))
    (this,), (other,) = by_class(root, "dot this"), by_class(root, "dot other")
    assert float(this.attrib["cx"]) < float(other.attrib["cx"])
    assert float(this.attrib["cy"]) < float(other.attrib["cy"])


def test_text_in_plots_is_escaped() -> None:
    svg = layer_line(CAPTION, [1.0], ["\x1b<b>"], "<i>", "<script>")
    assert "<script>" not in svg
    assert HOSTILE not in svg
    assert ElementTree.fromstring(svg).find("{*}desc") is not None
