"""Verdicts made by hand, for the tests of what judges and shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsconv.runtime.verify.metrics import TokenScores, summarize
from dsconv.runtime.verify.verdict import Finding, Provenance, Verdict

PROVENANCE = Provenance(
    artifact="model.dsq",
    artifact_files={"model.dsq": "0" * 64},
    reference="org/model",
    reference_hash="1" * 64,
    text="built-in",
    text_hash="2" * 64,
    runtime="native",
    provider="cpu",
    machine="a processor, 2 cores",
    threads=2,
    versions={"dsconv": "0.1.0"},
    date="2026-01-02T03:04:05+00:00",
    tokens_hash="3" * 64,
    window=512,
)


def random_scores(tokens: int = 4096, seed: int = 0, kl: float = 0.01) -> TokenScores:
    """Scores whose KL differs from text to text and token to token, as in real ones."""
    rng = np.random.default_rng(seed)
    hardness = np.repeat(rng.gamma(4, 0.25, -(-tokens // 64)), 64)[:tokens]
    loss = 3 * hardness * rng.exponential(1, tokens)
    return TokenScores(
        kl=kl * hardness * rng.exponential(1, tokens),
        agree=rng.random(tokens) > 4 * kl,
        reference_loss=loss,
        artifact_loss=loss + kl * rng.standard_normal(tokens),
        confidence=rng.uniform(0.1, 1, tokens),
        artifact_top=rng.integers(0, 100, tokens),
        artifact_confidence=rng.uniform(0.1, 1, tokens),
        reference_top=rng.integers(0, 100, tokens),
    )


def verdict_of(scores: TokenScores, *findings: Finding, **provenance: Any) -> Verdict:
    return Verdict(
        summary=summarize(scores),
        scores=scores,
        buckets=(),
        noise_floor=None,
        worst_tokens=(),
        nodes_on_provider=1.0,
        checks=(),
        findings=findings,
        provenance=Provenance(**{**vars(PROVENANCE), **provenance}),
    )
