"""Layers that are exact stand by themselves and do not squash the others."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from verdicts import healthy

from dsconv.runtime.report.page import report_html
from dsconv.runtime.report.plots import Caption, layer_line
from dsconv.runtime.report.terminal import show_verdict

CAPTION = Caption("layers", "Layers", "text")


def heights(values: list[float]) -> list[float]:
    """y of each layer's dot; small is high."""
    svg = layer_line(CAPTION, values, [str(i) for i in range(len(values))], "dB", "lowest")
    return [float(y) for y in re.findall(r'<circle class="dot[^"]*" cx="[^"]*" cy="([^"]*)"', svg)]


@pytest.mark.parametrize("exact", [math.inf, 143.0, 3000.0])
def test_layers_with_an_error_keep_their_axis(exact: float) -> None:
    values = [30.0, 20.0, exact, 25.0, exact, 22.0]
    found, alone = heights(values), heights([30.0, 20.0, 25.0, 22.0])
    span = max(alone) - min(alone)
    inexact = [found[i] for i in (0, 1, 3, 5)]
    assert max(inexact) - min(inexact) == pytest.approx(span, abs=0.2)
    assert found[2] == found[4] < min(inexact)


@pytest.mark.parametrize("count", [1, 2, 400])
@pytest.mark.parametrize("value", [math.inf, 20.0, math.nan, -math.inf, 1e308])
def test_any_number_of_layers(count: int, value: float) -> None:
    svg = layer_line(CAPTION, [value] * count, ["0"] * count, "dB", "lowest")
    assert "nan" not in svg
    assert "inf" not in svg.replace("infinite", "")
    bottom = float(svg.split('viewBox="0 0 340 ')[1].split('"')[0])
    assert all(0 <= y <= bottom for y in heights([value] * count))
    assert ("every layer is exact" in svg) == (value >= 100)


def test_page_and_terminal_say_exact() -> None:
    from io import StringIO

    from rich.console import Console

    verdict = healthy()
    layers = [replace(layer, sqnr_db=math.inf) for layer in verdict.layers[:26]]
    mixed = replace(verdict, layers=(*layers, *verdict.layers[26:]))
    assert ">exact</data>" in report_html(mixed)
    stream = StringIO()
    show_verdict(mixed, Console(file=stream, width=120))
    assert "26 exact" in stream.getvalue()
    every = replace(verdict, layers=tuple(layers))
    assert "every layer is exact" in report_html(every)
