"""The verdict: an artifact in its own runtime against the model it was made from.

Both read the same text with the right answer given at every step (teacher forcing). The reference's
predictions come first, from the cache or by running it; then the artifact reads the same windows, a
piece at a time, so memory is bounded by a piece of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError, UsageError
from dsconv.progress import Advance
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.token_range import refuse_tokens_beyond
from dsconv.runtime.text.tokenizer import TextTokenizer

from .comparison import Comparison, tokenizer_of
from .metrics import TokenScores, join, summarize
from .reference import Predictions, Reference, Tokens, score_in_pieces
from .verdict import Bucket, Circumstances, Verdict, WorstToken

POSITION_EDGES = (0, 256, 1024)
CONFIDENCE_EDGES = (0.0, 0.5, 0.9, 0.99, 1.0)
WORST_TOKENS = 10
CONTEXT_TOKENS = 24  # shown before a bad token
FOLLOWING_TOKENS = 8


@dataclass(frozen=True)
class VerifyOptions:
    """How much is read: `max_tokens` of the text, in windows of at most `window` tokens."""

    window: int = 512
    max_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.window < 2 or self.max_tokens < 2:
            raise UsageError("window and token limit must be at least 2", "use larger numbers")


def built_in_text() -> str:
    """English, Chinese, maths, code, dialogue."""
    return resources.files("dsconv.runtime.verify").joinpath("verify_text.txt").read_text("utf-8")


def windows(tokens: Sequence[int], bos: Sequence[int], size: int) -> Iterator[list[int]]:
    """Consecutive pieces of `size` tokens, BOS counted, each with at least one prediction."""
    step = size - len(bos)
    for start in range(0, len(tokens), step):
        window = [*bos, *tokens[start : start + step]]
        if len(window) > 1:
            yield window


def plan_windows(
    artifact: Loaded, reference: Reference, text: str, options: VerifyOptions
) -> list[list[int]]:
    """Tokenize and cut the text, after checking that the two models can be compared.

    Raises:
        InputError: the two do not share a vocabulary, or the text is too short.
    """
    mine, theirs = artifact.session.vocabulary, reference.vocabulary
    if mine != theirs:
        raise InputError(
            f"the artifact has {mine} logits per token, the reference {theirs}",
            "use the checkpoint that the artifact was made from as --reference",
        )
    tokenizer = tokenizer_of(artifact, reference)
    tokens = tokenizer.encode_prompt(text)
    refuse_tokens_beyond(tokens, mine, "the text", tokenizer)
    bos = tokens[:1] if tokens[:1] == [tokenizer.bos_id] else []
    tokens = tokens[len(bos) :][: options.max_tokens]
    size = min(options.window, artifact.session.context_length, reference.context_length)
    if size <= len(bos) or size < 2:
        raise InputError(
            f"a context of {size} tokens holds no prediction",
            _longer_windows(size, options, artifact, reference),
        )
    pieces = list(windows(tokens, bos, size))
    if not pieces:
        raise InputError(
            f"the text has {len(tokens)} tokens, at least 2 are needed", "use a longer text"
        )
    unknown = max(max(piece) for piece in pieces)
    if unknown >= mine:
        raise InputError(
            f"the tokenizer gives token {unknown}, the model has {mine}",
            "tokenizer.json belongs to another model",
        )
    return pieces


def _longer_windows(
    size: int, options: VerifyOptions, artifact: Loaded, reference: Reference
) -> str:
    """What keeps them short: the option, the export, or the model itself."""
    if size == options.window:
        return "use a larger --window"
    if artifact.session.context_length < reference.context_length:
        return "export again with a larger --context-length"
    return "the context of the model itself is that short: no text can verify it"


def measure(
    comparison: Comparison,
    predictions: Predictions,
    circumstances: Circumstances,
    advance: Advance = lambda tokens: None,
) -> Verdict:
    """Score the windows with the artifact and compare with the reference's predictions of them.

    The verdict is measured, not judged: its checks are those of judge.py.
    """
    parts = []
    session, planned = comparison.artifact.session, comparison.windows
    for index, window in enumerate(planned):
        parts.append(predictions.compare(index, score_in_pieces(session, window)))
        advance(len(window))
    scores = join(parts)
    return Verdict(
        summary=summarize(scores),
        scores=scores,
        buckets=(*_position_buckets(scores, planned), *_confidence_buckets(scores)),
        noise_floor=predictions.noise,
        worst_tokens=_worst_tokens(scores, planned, comparison.tokenizer),
        nodes_on_provider=comparison.artifact.nodes_on_provider,
        checks=(),
        findings=(),
        circumstances=circumstances,
    )


def _position_buckets(scores: TokenScores, planned: Tokens) -> Iterator[Bucket]:
    """By how much the model has seen: the position of the last token it knows."""
    positions = np.concatenate([np.arange(len(window) - 1) for window in planned])
    for low, high in pairwise((*POSITION_EDGES, np.inf)):
        which = (positions >= low) & (positions < high)
        name = f"{low}+" if high == np.inf else f"{low}-{high}"
        if which.any():
            yield Bucket("position", name, summarize(scores.select(which)))


def _confidence_buckets(scores: TokenScores) -> Iterator[Bucket]:
    """By the reference's largest probability; 1 belongs to the last."""
    for low, high in pairwise(CONFIDENCE_EDGES):
        which = (scores.confidence >= low) & ((scores.confidence < high) | (high == 1))
        if which.any():
            yield Bucket("confidence", f"{low}-{high}", summarize(scores.select(which)))


def _worst_tokens(
    scores: TokenScores, planned: Tokens, tokenizer: TextTokenizer
) -> tuple[WorstToken, ...]:
    """The tokens of the largest KL, the worst first, in their context."""
    starts = np.cumsum([0, *(len(window) - 1 for window in planned)])
    found = []
    for place in _largest(scores.kl, WORST_TOKENS):
        index = int(np.searchsorted(starts, place, side="right")) - 1
        window, position = planned[index], int(place - starts[index])
        follows = position + 1
        found.append(
            WorstToken(
                float(scores.kl[place]),
                index,
                follows,
                tokenizer.decode(window[max(0, follows - CONTEXT_TOKENS) : follows]),
                tokenizer.decode([window[follows]], skip_special=False),
                tokenizer.decode(window[follows + 1 : follows + 1 + FOLLOWING_TOKENS]),
                tokenizer.decode([int(scores.reference_top[place])], skip_special=False),
                float(scores.confidence[place]),
                tokenizer.decode([int(scores.artifact_top[place])], skip_special=False),
                float(scores.artifact_confidence[place]),
            )
        )
    return tuple(found)


def _largest(values: NDArray[np.float64], count: int) -> list[int]:
    """Places of the largest values, descending; of those that are no number, first."""
    order = np.argsort(-np.where(np.isnan(values), np.inf, values), kind="stable")
    return [int(place) for place in order[:count]]
