"""The kept form of predictions against the full vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from dsconv.quant.schemes import Floats
from dsconv.runtime.verify.kept_logits import (
    Condensed,
    compare_condensed,
    compare_window,
    condense,
    join_condensed,
)
from dsconv.runtime.verify.metrics import TokenScores, compare, summarize


def zipf(seed: int, tokens: int = 300, vocabulary: int = 2000) -> Floats:
    """Logits with a long tail, as those of language models."""
    rng = np.random.default_rng(seed)
    ranks = np.log(np.arange(1, vocabulary + 1))
    noise = rng.standard_normal((tokens, vocabulary))
    return rng.permuted(-1.2 * ranks + 0.5 * noise, axis=1).astype(np.float32)


def disturbed(logits: Floats, size: float, seed: int = 7) -> Floats:
    noise = np.random.default_rng(seed).standard_normal(logits.shape)
    return (logits + size * noise).astype(np.float32)


def targets(count: int = 300, vocabulary: int = 2000) -> list[int]:
    return [int(i) for i in np.random.default_rng(9).integers(0, vocabulary, count)]


def kept(logits: Floats, top: int = 64, samples: int = 64, seed: int = 0) -> Condensed:
    return condense(logits, targets(len(logits)), np.random.default_rng(seed), top, samples)


def scores(p: Floats, q: Floats, top: int = 64, samples: int = 64, seed: int = 0) -> TokenScores:
    return compare_condensed(kept(p, top, samples, seed), q, targets(len(p)))


@pytest.mark.parametrize("size", [0.002, 0.03, 0.3, 1.0])  # KL 2e-6 to 0.5
def test_the_error_of_the_mean_is_below_one_percent(size: float) -> None:
    p = zipf(1)
    q = disturbed(p, size)
    exact, short = (summarize(s) for s in (compare(p, q, targets()), scores(p, q)))
    assert kept(p).tail.mean() > 0.1  # there is a tail to be wrong about
    assert short.kl_mean == pytest.approx(exact.kl_mean, rel=0.01)
    assert short.kl_p99 == pytest.approx(exact.kl_p99, rel=0.05)


def test_one_bucket_for_the_tail_would_not_do() -> None:
    p = zipf(1)
    q = disturbed(p, 0.03)
    reference = kept(p)
    log_q = q.astype(np.float64) - np.log(np.exp(q.astype(np.float64)).sum(-1, keepdims=True))
    top = reference.ids[:, :64]
    top_p = np.exp(reference.log_p()[:, :64])
    top_q = np.take_along_axis(log_q, top.astype(np.int64), -1)
    head = (top_p * (np.log(top_p) - top_q)).sum(-1)
    bucket = reference.tail * np.log(reference.tail / (1 - np.exp(top_q).sum(-1)))
    exact = compare(p, q, targets()).kl.mean()
    assert (head + bucket).mean() < 0.95 * exact


def test_the_estimate_is_unbiased() -> None:
    p = zipf(1, tokens=60)
    q = disturbed(p, 0.1)
    found = [scores(p, q, 16, 8, seed).kl.mean() for seed in range(200)]
    exact = compare(p, q, targets(60)).kl.mean()
    spread = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * spread + 0.002 * exact


def test_everything_but_the_tail_is_exact() -> None:
    p = zipf(1)
    q = disturbed(p, 0.3)
    exact, short = compare(p, q, targets()), scores(p, q)
    for name in ("agree", "artifact_top", "reference_top"):
        np.testing.assert_array_equal(getattr(short, name), getattr(exact, name))
    for name in ("reference_loss", "artifact_loss", "confidence", "artifact_confidence"):
        np.testing.assert_allclose(getattr(short, name), getattr(exact, name), rtol=1e-9)


@pytest.mark.parametrize("vocabulary", [3, 63, 64])
def test_a_small_vocabulary_is_kept_whole(vocabulary: int) -> None:
    p, wanted = zipf(1, 40, vocabulary), targets(40, vocabulary)
    q = disturbed(p, 0.5)
    reference = condense(p, wanted, np.random.default_rng(0), 64, 64)
    assert reference.ids.shape == (40, vocabulary)
    exact = compare(p, q, wanted).kl
    np.testing.assert_allclose(compare_condensed(reference, q, wanted).kl, exact, atol=1e-12)


def test_a_model_agrees_with_itself() -> None:
    p = zipf(1)
    found = scores(p, p)
    assert found.kl.max() < 1e-12
    assert found.agree.all()


def test_what_is_not_finite_stays_so() -> None:
    p = zipf(1, 10)
    q = p.copy()
    q[3] = np.nan
    kl = scores(p, q).kl
    assert np.isnan(kl[3])
    assert np.isfinite(np.delete(kl, 3)).all()


def test_a_tail_that_holds_next_to_nothing() -> None:
    p = np.zeros((4, 500), np.float32)
    p[:, 7] = 200
    q = p.copy()
    q[:, 9] = 150
    found = compare_condensed(condense(p, [7] * 4, np.random.default_rng(0), 8, 8), q, [7] * 4)
    assert np.isfinite(found.kl).all()
    assert found.kl.max() < 1e-6


def test_windows_in_pieces() -> None:
    p = zipf(1, 70)
    q = disturbed(p, 0.1)
    window = targets(70)  # of the 70 positions the last predicts nothing that is known
    random = np.random.default_rng(0)
    parts = [condense(p[a:b], window[a + 1 : b + 1], random) for a, b in ((0, 32), (32, 69))]
    reference = join_condensed(parts)
    found = compare_window(reference, (q[a : a + 23] for a in range(0, 70, 23)), window)
    exact = compare(p[:-1], q[:-1], window[1:])
    assert len(found.kl) == 69
    np.testing.assert_allclose(found.artifact_loss, exact.artifact_loss)
    assert found.kl.mean() == pytest.approx(exact.kl.mean(), rel=0.01)
