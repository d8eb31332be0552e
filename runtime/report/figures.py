"""A verdict in words: rows of figures, sentences, safe text. Page and terminal both say these."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from dsconv.runtime.console import count_text as short_count
from dsconv.runtime.console import size_text
from dsconv.runtime.verify.grade import what_is_missed, words_of
from dsconv.runtime.verify.metrics import Summary
from dsconv.runtime.verify.verdict import LimitCheck, Speed, Verdict

JOINERS = "\u200c\u200d"  # needed to write some scripts; the other format characters are not
EXACT_DB = 100.0  # what differs less does so by the rounding of float32 sums
SHOWN_NAME = 160  # characters of a name before it is cut in the middle


@dataclass(frozen=True)
class SummaryFigure:
    """A figure of a summary: how it is called, taken, and which check (max-NAME, min-NAME) judges
    it."""

    label: str
    take: Callable[[Summary], float]
    check: str
    is_share: bool = False
    is_kl: bool = False

    def text(self, value: float | None) -> str:
        return number(value, self.is_share)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


FIGURES = (
    SummaryFigure("mean KL, nats per token", lambda s: s.kl_mean, "kl", is_kl=True),
    SummaryFigure("median KL", lambda s: s.kl_median, "kl-median", is_kl=True),
    SummaryFigure("90th percentile", lambda s: s.kl_p90, "kl-p90", is_kl=True),
    SummaryFigure("99th percentile", lambda s: s.kl_p99, "kl-p99", is_kl=True),
    SummaryFigure("99.9th percentile", lambda s: s.kl_p999, "kl-p999", is_kl=True),
    SummaryFigure("largest", lambda s: s.kl_max, "kl-max", is_kl=True),
    SummaryFigure("same top token", lambda s: s.top1_agreement, "top1", is_share=True),
    SummaryFigure(
        "probability off by > 0.1", lambda s: s.probability_shift, "shift", is_share=True
    ),
    SummaryFigure("perplexity of the reference", lambda s: s.reference_perplexity, ""),
    SummaryFigure("perplexity of the artifact", lambda s: s.artifact_perplexity, "ppl"),
    SummaryFigure("perplexity ratio", lambda s: s.perplexity_ratio, "ppl-ratio"),
)
# What is compared with an earlier verdict, where small is good for all.
AGAINST_BASELINE = (
    SummaryFigure("mean KL", lambda s: s.kl_mean, "baseline-kl", is_kl=True),
    SummaryFigure(
        "other top token", lambda s: 1 - s.top1_agreement, "baseline-top1", is_share=True
    ),
    SummaryFigure(
        "log of the perplexity ratio", lambda s: _log(s.perplexity_ratio), "baseline-ppl"
    ),
)
_BY_CHECK = {figure.check: figure for figure in (*FIGURES, *AGAINST_BASELINE) if figure.check}
SOURCES = {
    "option": "",
    "recipe": "from the recipe",
    "file": "from dsconv.toml",
    "baseline": "from the baseline",
    "default": "by default",
}


def figure_of(check: LimitCheck) -> SummaryFigure | None:
    """The figure of the summary that a check judges; None where it judges something else."""
    name = re.sub(r"^(max|min)-", "", check.name.strip("-").replace("_", "-"))
    name = name.replace("perplexity", "ppl").replace("probability-shift", "shift")
    return _BY_CHECK.get(name.removesuffix("-mean"))


def floor_of(verdict: Verdict, figure: SummaryFigure | None) -> float | None:
    """The same figure of the reference against itself."""
    if verdict.noise_floor is None or figure is None:
        return None
    return figure.take(verdict.noise_floor.summary)


def floor_text(verdict: Verdict, figure: SummaryFigure | None) -> str:
    value = floor_of(verdict, figure)
    return "–" if figure is None or value is None else figure.text(value)


def number(value: float | None, is_share: bool = False, digits: int = 4) -> str:
    """In so many significant digits; shares in per cent."""
    if value is None:
        return "not measured"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    text = f"{value * 100 if is_share else value:.{digits}g}"
    text = re.sub(r"e([+-])0+", r"e\1", text).replace("e+", "e")  # 5e-5, not 5e-05
    return f"{text} %" if is_share else text


def is_exact(sqnr_db: float) -> bool:
    """An output that is the original's but for the arithmetic."""
    return sqnr_db >= EXACT_DB


def sqnr_text(sqnr_db: float) -> str:
    return "exact" if is_exact(sqnr_db) else number(sqnr_db)


def error(value: float, is_share: bool = False) -> str:
    """A standard error: `± 0.0012`."""
    return f"± {number(value, is_share, digits=2)}"


def check_number(check: LimitCheck, value: float | None) -> str:
    figure = figure_of(check)
    return number(value, figure is not None and figure.is_share)


def limit_text(check: LimitCheck) -> str:
    """`at most 0.03`."""
    return f"{'at most' if check.is_upper else 'at least'} {check_number(check, check.limit)}"


def by_how_much(check: LimitCheck) -> str:
    """How far the value is from the limit, and what of it is allowed for chance."""
    if check.value is None or not math.isfinite(check.value):
        return f"{number(check.value)}, which fails"
    distance = check.value - check.limit
    text = _distance(check, abs(distance))
    side = "above" if distance > 0 else "below"
    is_beyond = distance > 0 if check.is_upper else distance < 0
    if not is_beyond:
        return "at the limit" if distance == 0 else f"{text} {side} the limit"
    chance = _distance(check, check.margin)
    if check.passed:
        return f"{text} {side}, within the {chance} allowed for chance"
    allowed = f", {chance} allowed for chance" if check.margin else ""
    return f"{text} {side} the limit{allowed}"


def _distance(check: LimitCheck, distance: float) -> str:
    """Between two shares it is percentage points."""
    figure = figure_of(check)
    is_share = figure is not None and figure.is_share
    return f"{number(distance * 100)} points" if is_share else number(distance)


def state(verdict: Verdict) -> str:
    """One word; an artifact without limits was measured but nobody judged it."""
    if not verdict.passed:
        return "Failed"
    return "Passed" if verdict.checks else "Not judged"


def how_good(verdict: Verdict) -> str:
    """The grade in a sentence, with the figures that decide it."""
    s = verdict.summary
    missed = what_is_missed(s, verdict.scores)
    figures = (
        f"mean KL {number(s.kl_mean)}, same top token {number(s.top1_agreement, True, 3)}, "
        f"perplexity × {number(s.perplexity_ratio)}"
    )
    limit = f"; not better for {missed}" if missed else ""
    return f"{verdict.grade.capitalize()}, {words_of(verdict.grade)}: {figures}{limit}."


def why(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    tokens = count_text(verdict.summary.tokens, "token")
    failed = [check for check in verdict.checks if not check.passed]
    reasons = []
    if failed:
        reasons.append(
            f"{len(failed)} of {count_text(len(verdict.checks), 'check')} failed: "
            f"{_measured(failed[0])}, {by_how_much(failed[0])}"
        )
    if verdict.findings:
        found = count_text(len(verdict.findings), "finding")
        reasons.append(f"{found}, the first in {short(verdict.findings[0].place)}")
    if reasons:
        return f"{'; '.join(reasons)}."
    if not verdict.checks:
        return f"No limits were set: {tokens} were measured and not judged."
    closest = min(verdict.checks, key=_slack)
    count = len(verdict.checks)
    held = {1: "The check holds", 2: "Both checks hold"}.get(count, f"All {count} checks hold")
    return f"{held} on {tokens}; the closest is {_measured(closest)}."


def _measured(check: LimitCheck) -> str:
    name = short(check.figure.split(",")[0])  # without its unit
    return f"{name} {check_number(check, check.value)} ({limit_text(check)})"


def _slack(check: LimitCheck) -> float:
    """Distance to the limit, relative to it; a share counts from its nearer end."""
    if check.value is None:
        return -math.inf
    figure = figure_of(check)
    is_share = figure is not None and figure.is_share
    scale = min(check.limit, 1 - check.limit) if is_share else abs(check.limit)
    return abs(check.value - check.limit) / (scale or 1.0)


def count_text(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def this_speed(verdict: Verdict) -> Speed | None:
    """Size and speed of the artifact itself."""
    mine = verdict.circumstances.artifact
    return next((speed for speed in verdict.speeds if speed.name == mine), None)


def reference_speed(verdict: Verdict) -> Speed | None:
    theirs = verdict.circumstances.reference
    return next((speed for speed in verdict.speeds if speed.name == theirs), None)


def size_or_dash(count: int | None) -> str:
    return "–" if count is None else size_text(count)


def rate_text(rate: float | None) -> str:
    """Tokens per second; a dash where it was not measured."""
    if rate is None or not math.isfinite(rate):
        return "–" if rate is None else number(rate)
    return short_count(rate)


def date_text(date: str) -> str:
    """`2026-01-31 09:30 UTC`; as it is where it is no ISO date."""
    try:
        return datetime.fromisoformat(date).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return date


def last_part(path: str) -> str:
    """The name of a folder or file without what it lies in."""
    return path.rstrip("/").rsplit("/", 1)[-1] or path


def visible(text: str) -> str:
    """Text from models and files as it may be shown: characters that steer a terminal, turn the
    reading direction or cannot be encoded become their code point."""
    return "".join(_visible_character(character) for character in text)


def visible_token(token: str) -> str:
    """A token by itself: one that begins with a space is another than one that does not."""
    return visible(token).replace(" ", "␣") or "(empty)"


def _visible_character(character: str) -> str:
    if character in JOINERS:
        return character
    if character == "\n":
        return "↵"
    if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"):
        return f"‹U+{ord(character):04X}›"
    return character


def short(text: str, limit: int = SHOWN_NAME) -> str:
    """At most `limit` characters; the middle of a longer text is left out."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def start(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def end(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"…{text[len(text) - limit + 1 :]}"
