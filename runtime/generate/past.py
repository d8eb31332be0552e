"""What the text so far does to the next logits: transformers' processors, in their order.

The penalty on repetitions is that of CTRL (arXiv:1909.05858). Those on presence and frequency are
OpenAI's: a logit loses the one once and the other per time that its token was written, the prompt
not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from .settings import Sampling

FORBIDDEN = -np.inf


class Past:
    """The tokens so far, and what `sampling` makes of them.

    prompt: all that stands before the first token that is generated. end_ids: those that a least
    length forbids.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int] = (), end_ids: Collection[int] = ()
    ) -> None:
        self._sampling, self._end_ids = sampling, tuple(end_ids)
        self._text: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = {}  # of the beginnings of n-grams
        self._seen: set[int] = set()
        self._written: dict[int, int] = {}  # how often, after the prompt
        for token in prompt:
            self.append(token)
        self._prompt = len(self._text)
        self._written.clear()

    def append(self, token: int) -> None:
        self._text.append(token)
        self._seen.add(token)
        self._written[token] = self._written.get(token, 0) + 1
        size = self._sampling.no_repeat_ngram_size
        if 0 < size <= len(self._text):
            *start, last = self._text[-size:]
            self._followers.setdefault(tuple(start), []).append(last)

    def adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """-> the logits themselves where nothing is asked for, else a copy; -inf is forbidden."""
        s = self._sampling
        if not s.looks_back:
            return logits
        scores = logits.copy()
        for words, bias in s.sequence_bias:
            self._bias(scores, words, bias)
        if s.repetition_penalty != 1:
            seen = _within(self._seen, scores)
            values, penalty = scores[seen], np.float32(s.repetition_penalty)
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        self._penalize(scores)
        if s.no_repeat_ngram_size:
            start = tuple(self._text[len(self._text) + 1 - s.no_repeat_ngram_size :])
            scores[_within(self._followers.get(start, ()), scores)] = FORBIDDEN
        for words in s.bad_words_ids:
            if len(words) > 1 or words[0] not in self._end_ids:
                self._bias(scores, words, FORBIDDEN)
        self._forbid_ends(scores)
        scores[_within(s.suppress_tokens, scores)] = FORBIDDEN
        if len(self._text) == self._prompt:
            scores[_within(s.begin_suppress_tokens, scores)] = FORBIDDEN
        return scores

    def _bias(self, scores: NDArray[np.float32], words: tuple[int, ...], bias: float) -> None:
        """On the last of `words`, where the text ends in those before it."""
        *start, last = words
        if last < scores.size and (not start or self._text[-len(start) :] == start):
            scores[last] += np.float32(bias)

    def _penalize(self, scores: NDArray[np.float32]) -> None:
        s, written = self._sampling, self._written
        if written and (s.presence_penalty or s.frequency_penalty):
            tokens = np.fromiter(written, np.intp, len(written))
            counts = np.fromiter(written.values(), np.float32, len(written))
            scores[tokens] -= np.float32(s.presence_penalty) + counts * np.float32(
                s.frequency_penalty
            )

    def _forbid_ends(self, scores: NDArray[np.float32]) -> None:
        s, length = self._sampling, len(self._text)
        least = self._prompt + s.min_new_tokens if s.min_new_tokens else s.min_length
        if length < least:
            scores[_within(self._end_ids, scores)] = FORBIDDEN


def _within(tokens: Collection[int], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """As an index; ids that the model does not have are left out."""
    ids = np.fromiter(tokens, np.intp, len(tokens))
    return ids[(ids >= 0) & (ids < scores.size)]
