"""The reference's predictions, kept small: some hundred numbers per token instead of a vocabulary.

KL(p ‖ q) = Σ p (log p - log q). The likeliest tokens are summed exactly. Of the tail T of the
others, with masses P = Σ_T p (kept) and Q = Σ_T q = 1 - Σ_top q (known exactly as well), the chain
rule of KL leaves

    Σ_T p (log p - log q) = P log(P / Q) + P KL(p/P ‖ q/Q).

The first term is exact. One bucket for the tail would drop the second, which is of the same order
as the KL itself, so it is estimated from n tokens drawn from the tail in proportion to p. With
r = q / p, KL(p/P ‖ q/Q) = log E r - E log r, the logarithm of the arithmetic over the geometric
mean of r: for q near p that is half the variance of log r, hence the n / (n - 1) of a variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import TokenScores, blocks_of_rows, join, log_softmax

# Together 6 KB per token. On SmolLM2-135M 4 % of the mass is in the tail, and the mean KL of 2,048
# tokens is off by less than 0.1 %, of int8 (0.002 nats) as of int4 (0.09 nats).
TOP = 512
SAMPLES = 256
TINY = 1e-300  # a mass that rounding has made zero or negative


@dataclass(frozen=True)
class Condensed:
    """Of every position: the likeliest tokens, descending, then those drawn from the rest.

    ids, logits: [positions, top + samples], logits as the model gave them. normalizer: [positions],
    log Σ exp(logit) over the vocabulary. tail: [positions], the mass of all but the top. loss:
    [positions], negative log-likelihood (nats) of the token that really follows.
    """

    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    normalizer: NDArray[np.float64]
    tail: NDArray[np.float64]
    loss: NDArray[np.float64]
    top: int

    def __len__(self) -> int:
        return len(self.loss)

    def rows(self, part: slice) -> Condensed:
        return Condensed(
            self.ids[part],
            self.logits[part],
            self.normalizer[part],
            self.tail[part],
            self.loss[part],
            self.top,
        )

    def log_p(self) -> NDArray[np.float64]:
        """Log-probabilities of `ids`."""
        return self.logits.astype(np.float64) - self.normalizer[:, None]


def condense(
    logits: NDArray[np.float32],
    targets: Sequence[int],
    random: np.random.Generator,
    top: int = TOP,
    samples: int = SAMPLES,
) -> Condensed:
    """Keep what matters of logits [positions, vocabulary]; a small vocabulary is kept whole."""
    top, samples = (top, samples) if top < logits.shape[1] else (logits.shape[1], 0)
    wanted = np.asarray(targets)
    parts = [
        _condense_rows(logits[rows], wanted[rows], random, top, samples)
        for rows in blocks_of_rows(logits.shape)
    ]
    return join_condensed(parts)


def join_condensed(parts: Sequence[Condensed]) -> Condensed:
    return Condensed(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.normalizer for part in parts]),
        np.concatenate([part.tail for part in parts]),
        np.concatenate([part.loss for part in parts]),
        parts[0].top,
    )


def _condense_rows(
    logits: NDArray[np.float32],
    targets: NDArray[np.int_],
    random: np.random.Generator,
    top: int,
    samples: int,
) -> Condensed:
    rows = np.arange(len(logits))[:, None]
    ids = np.argpartition(logits, -top, axis=-1)[:, -top:]
    # Ties by the smaller id, as argmax has it.
    ids = np.take_along_axis(ids, np.lexsort((ids, -logits[rows, ids])), -1)
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    total = powers.sum(-1)
    normalizer = np.log(total) + logits.max(-1)
    tail = np.zeros(len(logits))
    if samples:
        rest = powers / total[:, None]
        rest[rows, ids] = 0
        sums = rest.cumsum(-1)
        tail = sums[:, -1].copy()
        ids = np.concatenate((ids, _draw(sums, random, samples)), -1)
    return Condensed(
        ids.astype(np.int32),
        logits[rows, ids],
        normalizer,
        tail,
        normalizer - logits[rows[:, 0], targets],
        top,
    )


def _draw(
    sums: NDArray[np.float64], random: np.random.Generator, samples: int
) -> NDArray[np.int64]:
    """Systematic sampling: one token from each of equal parts of the tail's mass, in id order."""
    parts = (np.arange(samples) + random.random((len(sums), samples))) / samples
    places = [
        np.searchsorted(row, part * row[-1], side="right")
        for row, part in zip(sums, parts, strict=True)
    ]
    return np.asarray(np.minimum(np.stack(places), sums.shape[1] - 1), np.int64)


def compare_condensed(
    reference: Condensed, artifact: NDArray[np.float32], targets: Sequence[int]
) -> TokenScores:
    """Compare the artifact's logits [positions, vocabulary] with the reference, as `compare`."""
    wanted = np.asarray(targets)
    parts = [
        _compare_rows(reference.rows(rows), log_softmax(artifact[rows]), wanted[rows])
        for rows in blocks_of_rows(artifact.shape)
    ]
    return join(parts)


def _compare_rows(
    reference: Condensed, log_q: NDArray[np.float64], targets: NDArray[np.int_]
) -> TokenScores:
    rows = np.arange(len(log_q))
    log_p, kept_q = reference.log_p(), log_q[rows[:, None], reference.ids]
    log_r, top = kept_q - log_p, reference.top
    kl = -np.einsum("ij,ij->i", np.exp(log_p[:, :top]), log_r[:, :top])
    if reference.ids.shape[1] > top:
        left = np.maximum(1 - np.exp(kept_q[:, :top]).sum(-1), TINY)
        bucket = np.log(np.maximum(reference.tail, TINY) / left)
        kl += reference.tail * (bucket + _within_tail(log_r[:, top:]))
    best = log_q.argmax(-1)
    return TokenScores(
        np.maximum(kl, 0.0),  # rounding may leave -1e-16 where the two are equal
        reference.ids[:, 0] == best,
        reference.loss,
        -log_q[rows, targets],
        np.exp(log_p[:, 0]),
        best,
        np.exp(log_q[rows, best]),
        reference.ids[:, 0].astype(np.int64),
    )


def _within_tail(log_r: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the mean of r, less the mean of log r, per row."""
    samples = log_r.shape[1]
    mean = log_r.mean(-1)
    spread = np.log(np.exp(log_r - mean[:, None]).mean(-1))
    return np.asarray(spread * samples / (samples - 1))


def compare_window(
    reference: Condensed, pieces: Iterable[NDArray[np.float32]], window: Sequence[int]
) -> TokenScores:
    """The artifact's logits after every token of a window, in pieces [any, vocabulary]."""
    parts, start = [], 0
    for piece in pieces:
        targets = window[start + 1 : start + 1 + len(piece)]
        expected = reference.rows(slice(start, start + len(targets)))
        start += len(piece)
        if targets:
            parts.append(compare_condensed(expected, piece[: len(targets)], targets))
    return join(parts)
