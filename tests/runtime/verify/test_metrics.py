"""KL, agreement and perplexity against textbook float64 and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsconv.runtime.verify.metrics import TokenScores, compare, join, log_softmax, summarize


def logits(
    seed: int, tokens: int = 130, vocabulary: int = 50, scale: float = 5
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((tokens, vocabulary))).astype(np.float32)


def targets(tokens: int = 130, vocabulary: int = 50) -> list[int]:
    return [int(i) for i in np.random.default_rng(9).integers(0, vocabulary, tokens)]


def textbook_kl(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> list[float]:
    """Σ p ln(p / q), one number at a time."""
    found = []
    for left, right in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        p_total = math.fsum(math.exp(x) for x in left)
        q_total = math.fsum(math.exp(x) for x in right)
        terms = [
            math.exp(a) / p_total * (a - math.log(p_total) - b + math.log(q_total))
            for a, b in zip(left, right, strict=True)
        ]
        found.append(math.fsum(terms))
    return found


def scores(kl: list[float]) -> TokenScores:
    zeros = np.zeros(len(kl))
    return TokenScores(np.array(kl), np.ones(len(kl), bool), zeros, zeros, zeros)


def test_kl_is_the_textbook_sum_and_torchs() -> None:
    p, q = logits(1), logits(2)
    kl = compare(p, q, targets()).kl
    np.testing.assert_allclose(kl, textbook_kl(p, q), rtol=1e-12)
    log_p, log_q = (torch.from_numpy(x).double().log_softmax(-1) for x in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(kl, expected.numpy(), rtol=1e-12)


def test_kl_has_a_direction() -> None:
    p, q = logits(1), logits(2, scale=1)
    assert not np.allclose(compare(p, q, targets()).kl, compare(q, p, targets()).kl, rtol=0.1)


def test_losses_are_torchs_cross_entropy() -> None:
    p, q = logits(1), logits(2)
    found = compare(p, q, targets())
    wanted = torch.tensor(targets())
    for loss, x in ((found.reference_loss, p), (found.artifact_loss, q)):
        expected = torch.nn.functional.cross_entropy(
            torch.from_numpy(x).double(), wanted, reduction="none"
        )
        np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-12)
    summary = summarize(found)
    assert summary.reference_perplexity == pytest.approx(math.exp(found.reference_loss.mean()))
    assert summary.artifact_perplexity == pytest.approx(math.exp(found.artifact_loss.mean()))


def test_the_same_logits_agree_wholly() -> None:
    summary = summarize(compare(logits(1), logits(1), targets()))
    assert summary.kl_mean == summary.kl_max == summary.kl_stderr == 0
    assert summary.top1_agreement == 1
    assert summary.reference_perplexity == summary.artifact_perplexity


def test_an_offset_of_all_logits_changes_nothing() -> None:
    p = np.round(logits(1))
    found = compare(p, p + np.float32(1000), targets())
    np.testing.assert_allclose(found.kl, 0, atol=1e-12)
    np.testing.assert_allclose(found.artifact_loss, found.reference_loss, atol=1e-9)


def test_kl_is_never_negative() -> None:
    p = logits(1)
    nearly = p * np.float32(1 + 1e-7)
    assert (compare(p, nearly, targets()).kl >= 0).all()


def test_extreme_logits_stay_finite() -> None:
    p = np.array([[3e38, -3e38, 0]], np.float32)
    found = compare(p, -p, [0])
    assert np.isfinite(found.kl).all()
    assert np.isfinite(log_softmax(p)[0, 0])
    assert math.isfinite(summarize(found).artifact_perplexity)


def test_agreement_counts_equal_top_tokens() -> None:
    p, q = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    assert compare(p, q, [0] * 4).agree.tolist() == [True, True, True, False]
    assert summarize(compare(p, q, [0] * 4)).top1_agreement == 0.75


def test_stderr_is_that_of_the_mean() -> None:
    values = [0.0, 0.1, 0.4, 0.9, 0.2]
    summary = summarize(scores(values))
    mean = sum(values) / 5
    variance = sum((value - mean) ** 2 for value in values) / 4
    assert summary.kl_mean == pytest.approx(mean)
    assert summary.kl_stderr == pytest.approx(math.sqrt(variance / 5))
    assert summary.kl_median == 0.2
    assert summary.kl_max == 0.9
    assert summary.tokens == 5


def test_stderr_covers_the_true_mean_as_often_as_it_should() -> None:
    rng = np.random.default_rng(3)
    samples = [summarize(scores(list(rng.exponential(1.0, 200)))) for _ in range(400)]
    inside = sum(abs(s.kl_mean - 1) < 2 * s.kl_stderr for s in samples) / len(samples)
    assert 0.92 < inside < 0.98


def test_p99_lies_above_99_of_100() -> None:
    summary = summarize(scores([float(i) for i in range(1001)]))
    assert summary.kl_p99 == 990
    assert summary.kl_median == 500


def test_one_token_is_enough() -> None:
    summary = summarize(scores([0.5]))
    assert (summary.kl_mean, summary.kl_stderr, summary.kl_p99) == (0.5, 0, 0.5)


def test_pieces_join_to_the_whole() -> None:
    p, q, wanted = logits(1), logits(2), targets()
    parts = [compare(p[s : s + 7], q[s : s + 7], wanted[s : s + 7]) for s in range(0, 130, 7)]
    whole, joined = compare(p, q, wanted), join(parts)
    for field in ("kl", "agree", "reference_loss", "artifact_loss"):
        np.testing.assert_array_equal(getattr(joined, field), getattr(whole, field))
