"""How good an artifact is, in a word with a rule: faithful, good, degraded, broken.

The mean KL and the perplexity decide. The top token does not: on real text it follows the KL, and
where a model is sure of nothing, other top tokens are ties. Where the limits come from is in
docs/verify.md; `benchmarks/verdict_grades.py` measures that again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .metrics import BLOCK, Summary, TokenScores, blocks_of, standard_error

Grade = Literal["faithful", "good", "degraded", "broken"]

STANDARD_ERRORS = 2.0  # of what was measured, which count as chance at a limit
MOST_CHANCE = 0.1  # of the limit: few tokens do not make an artifact better


@dataclass(frozen=True)
class GradeLimits:
    """What an artifact of this grade keeps."""

    grade: Grade
    max_kl: float
    max_ppl_ratio: float
    words: str


LADDER = (
    GradeLimits("faithful", 0.02, 1.02, "as the original"),
    GradeLimits("good", 0.10, 1.10, "the original's answers in other words at times"),
    GradeLimits("degraded", 1.0, 3.0, "noticeably worse than the original"),
)
GRADES: tuple[Grade, ...] = (*(limits.grade for limits in LADDER), "broken")
BROKEN_WORDS = "not the original's model any more"


@dataclass(frozen=True)
class Chance:
    """What is allowed beyond a limit: from the standard errors of means over blocks of tokens."""

    kl: float
    log_ppl_ratio: float

    def kl_margin(self, limit: float) -> float:
        return min(self.kl, MOST_CHANCE * limit)

    def ppl_margin(self, limit: float) -> float:
        return min(limit * math.expm1(self.log_ppl_ratio), MOST_CHANCE * (limit - 1))


NO_CHANCE = Chance(0.0, 0.0)


def chance_of(scores: TokenScores) -> Chance:
    """Nothing where too few blocks tell no spread."""
    if len(scores.kl) < 2 * BLOCK:
        return NO_CHANCE
    blocks = blocks_of(scores)
    errors = (standard_error(v) for v in (blocks.kl, blocks.loss))
    allowed = [STANDARD_ERRORS * error for error in errors]
    return Chance(*(value if math.isfinite(value) else 0.0 for value in allowed))


def grade_of(summary: Summary, scores: TokenScores) -> Grade:
    """The best one of whose limits none is missed by more than chance."""
    chance = chance_of(scores)
    return next((limits.grade for limits in LADDER if keeps(summary, limits, chance)), "broken")


def keeps(summary: Summary, limits: GradeLimits, chance: Chance) -> bool:
    """False where a figure is not finite."""
    ratio = limits.max_ppl_ratio + chance.ppl_margin(limits.max_ppl_ratio)
    return (
        summary.kl_mean <= limits.max_kl + chance.kl_margin(limits.max_kl)
        and summary.perplexity_ratio <= ratio
    )


def expected_grade(bits: float, rounds_inputs: bool = False) -> Grade:
    """What an honest conversion reaches by default.

    Args:
        bits: of the artifact's narrowest matrix, scales included.
        rounds_inputs: activations are rounded to int8 too, which costs more than int8 weights.
    """
    if bits >= 7.5 and not rounds_inputs:
        return "faithful"
    return "good" if bits >= 4.0 else "degraded"


def limits_of(grade: Grade) -> GradeLimits:
    return next(limits for limits in LADDER if limits.grade == grade)


def words_of(grade: Grade) -> str:
    return next((limits.words for limits in LADDER if limits.grade == grade), BROKEN_WORDS)


def what_is_missed(summary: Summary, scores: TokenScores) -> str:
    """Which figure keeps the artifact from the next better grade; empty where none is better.

    `mean KL 0.05 (faithful: at most 0.02)`.
    """
    place = GRADES.index(grade_of(summary, scores))
    if place == 0:
        return ""
    better, chance = LADDER[place - 1], chance_of(scores)
    if summary.kl_mean <= better.max_kl + chance.kl_margin(better.max_kl):
        ratio = f"perplexity ratio {summary.perplexity_ratio:.4g}"
        return f"{ratio} ({better.grade}: at most {better.max_ppl_ratio:g})"
    return f"mean KL {summary.kl_mean:.3g} ({better.grade}: at most {better.max_kl:g})"
