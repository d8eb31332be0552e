"""Thresholds hold to the letter; a baseline only beyond chance and beyond what matters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verdicts import random_scores, verdict_of

from dsconv.errors import InputError
from dsconv.runtime.verify.judge import Baseline, failures, judge, read_baseline
from dsconv.runtime.verify.metrics import TokenScores, blocks_of
from dsconv.runtime.verify.thresholds import from_options
from dsconv.runtime.verify.verdict import Finding, Verdict
from dsconv.runtime.verify.verdict_json import to_json


def baseline_of(folder: Path, verdict: Verdict) -> Baseline:
    """Through the file, as users do."""
    path = folder / "last.json"
    path.write_text(json.dumps(to_json(verdict)), encoding="utf-8")
    return read_baseline(path)


def worse(scores: TokenScores, factor: float, seed: int = 5) -> TokenScores:
    """KL times a factor on the average, token by token a little more or less."""
    noise = np.random.default_rng(seed).uniform(0.9, 1.1, len(scores.kl))
    return replace(scores, kl=scores.kl * factor * noise)


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        ("max_kl", lambda s: s.kl_mean),
        ("max_kl_p99", lambda s: s.kl_p99),
        ("min_top1", lambda s: s.top1_agreement),
        ("max_ppl_ratio", lambda s: s.artifact_perplexity / s.reference_perplexity),
        ("max_probability_shift", lambda s: s.probability_shift),
    ],
)
def test_a_threshold_holds_to_the_letter(key: str, figure: Any) -> None:
    verdict = verdict_of(random_scores(kl=0.2))
    value = figure(verdict.summary)
    assert 0 < value < 2
    sign = -1 if key.startswith("max") else 1
    for shift, passes in ((0, True), (-sign * 1e-9, True), (sign * 1e-9, False)):
        judged = judge(verdict, from_options({key: value + shift}))
        assert judged.passed is passes
        assert (judged.checks[0].value, judged.checks[0].margin) == (value, 0)
        assert len(failures(judged)) == (not passes)


def test_checks_are_added_to_those_that_are_there() -> None:
    once = judge(verdict_of(random_scores()), from_options({"max_kl": 1.0}))
    twice = judge(once, from_options({"min_top1": 0.0}))
    assert [check.name for check in twice.checks] == ["max-kl", "min-top1"]


def test_figures_that_are_not_finite_never_pass() -> None:
    scores = random_scores()
    scores.kl[3] = math.nan
    judged = judge(verdict_of(scores), ())
    assert not judged.passed
    assert failures(judged) == ["logits: the logits are not finite"]
    json.dumps(to_json(judged), allow_nan=False)


def test_a_finding_fails_whatever_the_figures() -> None:
    verdict = verdict_of(random_scores(), Finding("tokenizer.json", "differs"))
    judged = judge(verdict, from_options({"max_kl": 100.0}))
    assert not judged.passed
    assert failures(judged) == ["tokenizer.json: differs"]


def test_blocks_add_up() -> None:
    for tokens in (1, 63, 64, 65, 127, 128, 200):
        scores = random_scores(tokens)
        blocks = blocks_of(scores)
        assert len(blocks.kl) == max(1, tokens // 64)
        assert blocks.kl[0] == pytest.approx(scores.kl[: 64 if tokens >= 128 else None].mean())
        last = 64 * (len(blocks.kl) - 1)
        assert blocks.disagreement[-1] == pytest.approx((~scores.agree[last:]).mean())


def test_the_same_again_passes(tmp_path: Path) -> None:
    verdict = verdict_of(random_scores())
    judged = judge(verdict, (), baseline_of(tmp_path, verdict))
    assert judged.passed
    assert [check.name for check in judged.checks] == [
        "baseline-kl",
        "baseline-top1",
        "baseline-ppl",
    ]
    assert all("the same tokens" in check.figure for check in judged.checks)


def test_on_the_same_tokens_little_is_seen(tmp_path: Path) -> None:
    """5 % more KL: far below the spread of the tokens, far above that of the differences."""
    scores = random_scores()
    baseline = baseline_of(tmp_path, verdict_of(scores))
    judged = judge(verdict_of(worse(scores, 1.05)), (), baseline)
    assert [check.name for check in judged.checks if not check.passed] == ["baseline-kl"]
    other = judge(verdict_of(worse(scores, 1.05), tokens_hash="other"), (), baseline)
    assert other.passed
    assert "other tokens" in other.checks[0].figure


def test_what_does_not_matter_passes_however_certain(tmp_path: Path) -> None:
    scores = random_scores()
    baseline = baseline_of(tmp_path, verdict_of(scores))
    slightly = replace(scores, kl=scores.kl * 1.01)
    assert judge(verdict_of(slightly), (), baseline).passed
    better = judge(verdict_of(worse(scores, 0.5)), (), baseline)
    assert better.passed


@pytest.mark.parametrize(
    "circumstances", [{}, {"tokens_hash": "other"}, {"reference_hash": "other"}]
)
def test_a_clear_regression_fails(tmp_path: Path, circumstances: dict[str, str]) -> None:
    scores = random_scores()
    baseline = baseline_of(tmp_path, verdict_of(scores))
    bad = replace(scores, kl=2 * scores.kl, artifact_loss=scores.artifact_loss + 0.1)
    judged = judge(verdict_of(bad, **circumstances), (), baseline)
    assert {c.name for c in judged.checks if not c.passed} == {"baseline-kl", "baseline-ppl"}


def test_other_top_tokens_are_a_regression(tmp_path: Path) -> None:
    scores = random_scores()
    baseline = baseline_of(tmp_path, verdict_of(scores))
    flipped = scores.agree & (np.arange(len(scores.kl)) % 20 > 0)
    judged = judge(verdict_of(replace(scores, agree=flipped)), (), baseline)
    assert {c.name for c in judged.checks if not c.passed} == {"baseline-top1"}


def test_the_gate_is_not_flaky(tmp_path: Path) -> None:
    """An equally good artifact on other tokens, and with other rounding on the same, 200 times."""
    scores = random_scores(2048)
    baseline = baseline_of(tmp_path, verdict_of(scores))
    failed = 0
    for seed in range(1, 201):
        other = verdict_of(random_scores(2048, seed), tokens_hash="other")
        again = verdict_of(worse(scores, 1.0, seed))
        failed += not judge(other, (), baseline).passed
        failed += not judge(again, (), baseline).passed
    assert failed <= 4


@pytest.mark.parametrize("tokens", [1, 63, 64, 511])
def test_too_few_tokens_tell_nothing(tmp_path: Path, tokens: int) -> None:
    short, long = verdict_of(random_scores(tokens)), verdict_of(random_scores(512))
    for now, before in ((short, long), (long, short)):
        with pytest.raises(InputError, match="at least 512 are needed"):
            judge(now, (), baseline_of(tmp_path, before))
    assert judge(long, (), baseline_of(tmp_path, long)).passed


@pytest.mark.parametrize("content", ["{}", '{"tokens": 3}', "[]", "", '{"blocks": {"kl": "x"}}'])
def test_a_file_that_is_no_verdict(tmp_path: Path, content: str) -> None:
    (tmp_path / "last.json").write_text(content)
    with pytest.raises(InputError, match=r"last\.json"):
        read_baseline(tmp_path / "last.json")


def test_a_verdict_without_figures_is_no_baseline(tmp_path: Path) -> None:
    scores = random_scores()
    scores.kl[0] = math.nan
    with pytest.raises(InputError, match="not a verdict"):
        baseline_of(tmp_path, verdict_of(scores))
