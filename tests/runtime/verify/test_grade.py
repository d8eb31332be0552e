"""How good an artifact is: the words, their limits, chance at a limit, and what would help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from verdicts import random_scores, verdict_of

from dsconv.runtime.verify.cures import cure
from dsconv.runtime.verify.grade import (
    GRADES,
    LADDER,
    NO_CHANCE,
    Grade,
    chance_of,
    expected_grade,
    grade_of,
    keeps,
    what_is_missed,
)
from dsconv.runtime.verify.judge import judge
from dsconv.runtime.verify.metrics import Summary, TokenScores, summarize
from dsconv.runtime.verify.thresholds import defaults, from_options
from dsconv.runtime.verify.verdict import Finding, LimitCheck, TaskScore, Verdict

FEW = random_scores(64)  # too few to tell chance


def summary(kl: float, top1: float, ratio: float) -> Summary:
    base = summarize(FEW)
    return replace(
        base,
        kl_mean=kl,
        top1_agreement=top1,
        artifact_perplexity=base.reference_perplexity * ratio,
    )


def verdict(kl: float, top1: float, ratio: float, bits: float = 4.5, method: str = "") -> Verdict:
    plain = verdict_of(FEW, bits=bits, method=method)
    return replace(plain, summary=summary(kl, top1, ratio))


# Of llama.cpp's own table for Llama-3-8B: mean KL, same top token, perplexity ratio.
@pytest.mark.parametrize(
    ("what", "kl", "top1", "ratio", "grade"),
    [
        ("Q8_0", 0.001355, 0.97674, 1.0004, "faithful"),
        ("Q6_K", 0.005452, 0.96031, 1.0035, "faithful"),
        ("Q4_K_M", 0.031273, 0.91901, 1.0282, "good"),
        ("Q4_0, plain rounding", 0.071940, 0.87, 1.0752, "good"),
        ("Q2_K", 0.445132, 0.71138, 1.5648, "degraded"),
        ("IQ1_S", 2.211278, 0.45, 9.69, "broken"),
        ("perplexity alone", 0.05, 0.9, 1.2, "degraded"),
        ("ties", 0.0015, 0.6, 1.0, "faithful"),
        ("not finite", float("nan"), 0.9, 1.0, "broken"),
        ("infinite perplexity", 0.01, 0.99, float("inf"), "broken"),
        ("a lower perplexity", 0.01, 0.95, 0.9, "faithful"),
    ],
)
def test_what_is_known_gets_its_word(
    what: str, kl: float, top1: float, ratio: float, grade: Grade
) -> None:
    assert grade_of(summary(kl, top1, ratio), FEW) == grade, what


def test_limits_belong_to_the_better_grade() -> None:
    for limits in LADDER:
        at = summary(limits.max_kl, 0.9, limits.max_ppl_ratio)
        assert keeps(at, replace(limits, max_ppl_ratio=limits.max_ppl_ratio + 1e-9), NO_CHANCE)
        beyond = replace(at, kl_mean=limits.max_kl * 1.001)
        assert not keeps(beyond, limits, NO_CHANCE)


def test_chance_counts_at_a_limit_and_no_further() -> None:
    """A mean KL just above 0.1 on tokens that differ much is still good; 0.12 is not."""
    scores = random_scores(4096, kl=0.1)
    near = scaled(scores, 0.104)
    assert 0.004 < chance_of(near).kl < 0.02
    assert grade_of(summarize(near), near) == "good"
    far = scaled(scores, 0.12)
    assert grade_of(summarize(far), far) == "degraded"
    few = scaled(random_scores(256, kl=0.1), 0.2)  # its standard error would allow more
    assert grade_of(summarize(few), few) == "degraded"


def scaled(scores: TokenScores, mean: float) -> TokenScores:
    kl = scores.kl * (mean / scores.kl.mean())
    agree = np.arange(len(kl)) % 10 > 0
    return replace(scores, kl=kl, agree=agree, artifact_loss=scores.reference_loss)


@pytest.mark.parametrize("tokens", [1, 2, 63, 65, 128])
def test_few_tokens(tokens: int) -> None:
    scores = random_scores(tokens)
    assert grade_of(summarize(scores), scores) in GRADES


@pytest.mark.parametrize(
    ("bits", "grade"),
    [(32, "faithful"), (8.5, "faithful"), (6.6, "good"), (4.06, "good"), (3.5, "degraded")],
)
def test_the_default_passes_what_its_grade_expects(bits: float, grade: Grade) -> None:
    """The default checks pass exactly where the grade is the expected one or better."""
    assert expected_grade(bits) == grade
    for kl in (0.001, 0.019, 0.021, 0.099, 0.12, 0.99, 1.2):
        for ratio in (1.0, 1.05, 2.0, 4.0):
            found = judge(verdict(kl, 0.8, ratio, bits), defaults(bits))
            enough = GRADES.index(found.grade) <= GRADES.index(grade)
            assert found.passed == enough, (kl, ratio, found.grade)


def test_what_somebody_asked_for_holds_to_the_letter() -> None:
    scores = scaled(random_scores(4096, kl=0.1), 0.1001)
    strict = judge(verdict_of(scores), from_options({"max_kl": 0.1}))
    assert not strict.passed
    assert strict.grade == "good"
    default = judge(verdict_of(scores), defaults(4.5))
    assert default.passed


def test_what_keeps_it_from_the_next_word() -> None:
    assert what_is_missed(summary(0.05, 0.9, 1.0), FEW) == "mean KL 0.05 (faithful: at most 0.02)"
    assert "perplexity ratio 1.2 (good" in what_is_missed(summary(0.05, 0.9, 1.2), FEW)
    assert what_is_missed(summary(0.001, 0.99, 1.0), FEW) == ""


@pytest.mark.parametrize(
    ("found", "has", "has_not"),
    [
        (verdict(0.3, 0.7, 1.3, 4.5, "search"), "--method gptq", "--layers"),
        (verdict(0.3, 0.7, 1.3, 4.5, "gptq"), "--target-bpw 5.5", "calibrate"),
        (verdict(0.3, 0.7, 1.3, 4.5), "--target-bpw 5.5", "calibrate"),
        (verdict(5.0, 0.1, 90.0, 4.5, "gptq"), "--layers", "--target-bpw"),
        (verdict(0.3, 0.7, 1.3, 8.5, "search"), "--layers", "--bits 8"),
        (verdict(0.05, 0.9, 1.01, 8.1, "int8 activations"), "leave out --activations", "bits 8"),
        (verdict(0.3, 0.7, 1.3, 32.0), "stored in float", "--bits"),
        (verdict(0.3, 0.7, 1.3, 3.5, "gptq"), "--target-bpw 4.5", "calibrate"),
        (verdict(0.01, 0.95, 1.01, 8.5, "search"), "--method gptq", "--layers"),
        (verdict(0.01, 0.95, 1.01, 8.5, "gptq"), "larger limit", "calibrate"),
    ],
)
def test_the_cure_fits_the_situation(found: Verdict, has: str, has_not: str) -> None:
    failed = judge(found, from_options({"max_kl": 1e-6}))
    assert has in cure(failed)
    assert has_not not in cure(failed)


def test_the_cure_of_other_failures() -> None:
    slow = replace(verdict(0.01, 0.95, 1.0), checks=(_failed("min-speedup", "option"),))
    assert "idle" in cure(slow)
    for reference, has in ((0.4, "reference itself reaches 0.4"), (0.9, "--target-bpw")):
        asked = TaskScore("t.jsonl", 50, 1, 0.3, 0.06, reference, 0.07)
        found = replace(verdict(0.05, 0.9, 1.0, 4.5), tasks=(asked,))
        assert has in cure(judge(found, from_options({"min_accuracy": 0.8})))
    worse = replace(verdict(0.01, 0.95, 1.0), checks=(_failed("baseline-kl", "baseline"),))
    assert "baseline" in cure(worse)
    wrong = replace(slow, findings=(Finding("place", "wrong", "do this"),))
    assert cure(wrong) == "do this"


def _failed(name: str, source: str) -> LimitCheck:
    return LimitCheck(name, name, 0.5, 1.0, False, source=source)  # type: ignore[arg-type]
