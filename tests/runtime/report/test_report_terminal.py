"""The verdict on terminals: narrow, without colour, without Unicode, with hostile text."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from verdicts import broken, healthy, hostile

from dsconv.runtime.console import sparkline
from dsconv.runtime.report.figures import FIGURES
from dsconv.runtime.report.terminal import show_verdict
from dsconv.runtime.verify.verdict import Verdict


def shown(verdict: Verdict, width: int = 80, encoding: str = "utf-8", colour: bool = False) -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, newline="") as file:
        system = "standard" if colour else None
        console = Console(file=file, width=width, force_terminal=colour, color_system=system)
        show_verdict(verdict, console)
        file.flush()
        return raw.getvalue().decode(encoding)


def test_says_what_the_page_says() -> None:
    verdict = replace(broken(), report=Path("out.html"))
    text = shown(verdict, width=120)
    assert text.startswith("Failed: R1-Distill-Qwen-1.5B-int4")
    for figure in FIGURES:
        assert figure.text(figure.take(verdict.summary)) in text
    for words in (
        "FAILED: 0.1025 above the limit",
        "FAILED: 7.722 points below the limit",
        "wrong: tokenizer.json: one merge of the source is missing",
        "cure: export again",
        "noise floor",
        "largest: model.layers.11, SQNR 6.4 dB",
        "q4_k_m.gguf",
        "76.25 % ± 2.1 % right (reference 77.75 %)",
        "mean of 2 subjects: 76 % ± 2.1 % (reference 77.5 % ± 2.1 %)",
        "answer of most of 4 samples: 82 % ± 3.9 % (reference 83 % ± 3.8 %)",
        "3 % of the answers were cut at the limit of tokens (reference 2 %)",
        "report: out.html",
    ):
        assert words in text, words
    assert text.count("[part]") == 3  # three worst tokens


@pytest.mark.parametrize("make", [healthy, broken, hostile])
@pytest.mark.parametrize("width", [80, 40])
def test_fits_narrow_terminals(make: type[Verdict], width: int) -> None:
    for line in shown(make(), width).splitlines():
        assert cell_len(line) <= width


def test_hostile_text_commands_nothing() -> None:
    text = shown(hostile())
    assert not {"\x1b", "\x00", "\u202e", "\ud800"} & set(text)
    assert "‹U+001B›" in text
    styled = shown(replace(healthy(), findings=hostile().findings), colour=True)
    assert "‹U+001B›[31m" in styled  # the text's own is shown,
    assert "\x1b[1;31mFailed" in styled  # ours works


def test_plain_encoding() -> None:
    text = shown(broken(), encoding="ascii")
    assert "FAILED" in text
    assert "error by layer" in text
    assert "largest: model.layers.11" in text
    assert text.split("error by layer")[1].split()[0][11] == "*"


def test_unjudged_and_bare() -> None:
    bare = replace(healthy(), checks=(), buckets=(), layers=(), speeds=(), tasks=())
    text = shown(replace(bare, free_running=None, noise_floor=None, worst_tokens=()))
    assert text.startswith("Not judged")
    assert "No limits were set" in text
    assert "KL by" not in text


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0, float("nan")]) == "▁▅█?"
    assert sparkline([]) == ""
