"""What a token is called, and how likely it was: the log-probabilities of both interfaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.text.tokenizer import REPLACEMENT, TextTokenizer

LEAST = -9999.0  # JSON has no infinity; OpenAI writes this number too
ROWS = 32  # rows of a prompt at once: a vocabulary of 152,064 in float64 takes 1.2 MB each
NAMES_KEPT = 1 << 16


@dataclass(frozen=True)
class Log:
    """A token, its log-probability, and the likeliest tokens in its place with theirs. place: of a
    written one, in the characters of what was written."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    place: int = 0


class TokenTexts:
    """Names of tokens: their text, and another name for those that are no text of their own."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # A decoder may leave out the space in front of the first token of a text.
        self._anchor = tokenizer.encode("a")[-1:]
        self._before = len(tokenizer.decode(self._anchor, skip_special=False))
        self.name = lru_cache(NAMES_KEPT)(self._name)

    def _name(self, token: int) -> str:
        text = self._text(token)
        if text and REPLACEMENT not in text:
            return text
        found = self.bytes_of(token)
        if found:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
        return f"token_id:{token}"

    def bytes_of(self, token: int) -> list[int] | None:
        """None where the vocabulary does not tell."""
        text = self._text(token)
        if text and REPLACEMENT not in text:
            return list(text.encode("utf-8", "replace"))
        piece = self._tokenizer.piece(token) or ""
        if len(piece) == 6 and piece.startswith("<0x"):
            return [int(piece[3:5], 16)]
        marks = _byte_marks()
        if piece and all(mark in marks for mark in piece):
            return [marks[mark] for mark in piece]
        return None

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([*self._anchor, token], skip_special=False)[self._before :]


@lru_cache(1)
def _byte_marks() -> dict[str, int]:
    """The characters by which GPT-2's vocabularies write bytes: itself where it can be printed,
    else the next one from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    marks = {chr(byte): byte for byte in printed}
    marks.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return marks


def log_of(token: int, logits: NDArray[np.float32], top: int) -> Log:
    """Of a token that was chosen from logits [vocabulary]."""
    return next(logs_of([token], logits[None], top))


def logs_of(tokens: Sequence[int], rows: NDArray[np.float32], top: int) -> Iterator[Log]:
    """Of tokens chosen from rows [at least as many, vocabulary], one after the other.

    Raises:
        InputError: the model produced NaN.
    """
    for start in range(0, len(tokens), ROWS):
        some = tokens[start : start + ROWS]
        scores = rows[start : start + len(some)].astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        if np.isnan(scores).any():
            raise InputError(
                "the model produced NaN", "the weights are damaged; verify the artifact"
            )
        np.maximum(scores, LEAST, out=scores)
        for token, row in zip(some, scores, strict=True):
            yield Log(token, float(row[token]), _likeliest(row, top))


def _likeliest(row: NDArray[np.float64], top: int) -> tuple[tuple[int, float], ...]:
    if not top:
        return ()
    top = min(top, row.size)
    limit = np.partition(row, row.size - top)[row.size - top]
    some = np.flatnonzero(row >= limit)
    some = some[np.argsort(-row[some], kind="stable")][:top]
    return tuple((int(token), float(row[token])) for token in some)
