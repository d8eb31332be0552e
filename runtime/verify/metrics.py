"""How far one model's predictions are from another's, token by token. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES_AT_A_TIME = 1 << 21  # of logits held in float64
BLOCK = 64  # tokens: neighbours are hard or easy together


@dataclass(frozen=True)
class TokenScores:
    """Per position: KL in nats, agreement of the top token, negative log-likelihoods (nats), the
    reference's largest probability; the artifact's top token and its probability; the reference's
    top token."""

    kl: NDArray[np.float64]
    agree: NDArray[np.bool_]
    reference_loss: NDArray[np.float64]
    artifact_loss: NDArray[np.float64]
    confidence: NDArray[np.float64]
    artifact_top: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    artifact_confidence: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    reference_top: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def select(self, which: NDArray[np.bool_] | slice) -> TokenScores:
        """The positions that a mask or a slice names."""
        return TokenScores(
            self.kl[which],
            self.agree[which],
            self.reference_loss[which],
            self.artifact_loss[which],
            self.confidence[which],
            self.artifact_top[which],
            self.artifact_confidence[which],
            self.reference_top[which],
        )


@dataclass(frozen=True)
class Summary:
    """Means over all tokens; `stderr` is the standard error of the mean KL. `probability_shift` is
    the share of tokens whose own probability differs by more than 0.1."""

    tokens: int
    kl_mean: float
    kl_stderr: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1_agreement: float
    probability_shift: float
    reference_perplexity: float
    artifact_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """Of the artifact to the reference; 1 where both are equal."""
        reference = self.reference_perplexity
        return self.artifact_perplexity / reference if reference else math.nan


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Along the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def compare(
    reference: NDArray[np.float32], artifact: NDArray[np.float32], targets: Sequence[int]
) -> TokenScores:
    """Compare logits [tokens, vocabulary] of two models on the same tokens.

    Args:
        targets: the token that really follows each position.

    KL(reference ‖ artifact) = Σ p (log p - log q) over the full vocabulary.
    """
    wanted = np.asarray(targets)
    parts = [
        _compare_rows(reference[rows], artifact[rows], wanted[rows])
        for rows in blocks_of_rows(reference.shape)
    ]
    return join(parts)


def blocks_of_rows(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of [positions, vocabulary] that are held in float64 together."""
    positions, vocabulary = shape
    step = max(1, VALUES_AT_A_TIME // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))


def _compare_rows(
    reference: NDArray[np.float32], artifact: NDArray[np.float32], targets: NDArray[np.int_]
) -> TokenScores:
    log_p, log_q = log_softmax(reference), log_softmax(artifact)
    difference = log_p - log_q
    kl = np.einsum("ij,ij->i", np.exp(log_p), difference)
    rows, best, expected = np.arange(len(targets)), log_q.argmax(-1), log_p.argmax(-1)
    return TokenScores(
        np.maximum(kl, 0.0),  # rounding may leave -1e-16 where the two are equal
        expected == best,
        -log_p[rows, targets],
        -log_q[rows, targets],
        np.exp(log_p[rows, expected]),
        best,
        np.exp(log_q[rows, best]),
        expected,
    )


def join(parts: Sequence[TokenScores]) -> TokenScores:
    return TokenScores(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.agree for part in parts]),
        np.concatenate([part.reference_loss for part in parts]),
        np.concatenate([part.artifact_loss for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.artifact_top for part in parts]),
        np.concatenate([part.artifact_confidence for part in parts]),
        np.concatenate([part.reference_top for part in parts]),
    )


def summarize(scores: TokenScores) -> Summary:
    """Statistics over all positions (at least one)."""
    count = len(scores.kl)
    shift = np.abs(np.exp(-scores.reference_loss) - np.exp(-scores.artifact_loss))
    deviation = float(scores.kl.std(ddof=1)) if count > 1 else 0.0
    return Summary(
        tokens=count,
        kl_mean=float(scores.kl.mean()),
        kl_stderr=deviation / math.sqrt(count),
        kl_median=float(np.median(scores.kl)),
        kl_p90=float(np.quantile(scores.kl, 0.9)),
        kl_p99=float(np.quantile(scores.kl, 0.99)),
        kl_p999=float(np.quantile(scores.kl, 0.999)),
        kl_max=float(scores.kl.max()),
        top1_agreement=float(scores.agree.mean()),
        probability_shift=float((shift > 0.1).mean()),
        reference_perplexity=_perplexity(scores.reference_loss),
        artifact_perplexity=_perplexity(scores.artifact_loss),
    )


def _perplexity(loss: NDArray[np.float64]) -> float:
    """exp of the mean loss; a model that is sure and wrong everywhere must not overflow."""
    return math.exp(min(float(loss.mean()), 700.0))


@dataclass(frozen=True)
class Blocks:
    """Means over consecutive tokens: KL, share of other top tokens, and the artifact's loss less
    the reference's (nats), whose exp is the perplexity ratio."""

    kl: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    loss: NDArray[np.float64]


def blocks_of(scores: TokenScores) -> Blocks:
    """A rest that fills no block belongs to the last one."""
    starts = np.arange(0, max(BLOCK, len(scores.kl) - BLOCK + 1), BLOCK)

    def means(values: NDArray[Any]) -> NDArray[np.float64]:
        sizes = np.diff([*starts, len(values)])
        return np.add.reduceat(values.astype(np.float64), starts) / sizes

    return Blocks(means(scores.kl), means(~scores.agree), means(excess_loss(scores)))


def excess_loss(scores: TokenScores) -> NDArray[np.float64]:
    """Per token, in nats: negative where the artifact is better."""
    return scores.artifact_loss - scores.reference_loss


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))
