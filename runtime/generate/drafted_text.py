"""A text whose next tokens are guessed: what the draft has read of it, and guesses in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .draft_length import MOST, DraftLength, Shares
from .speculation import PromptLookup


class DraftCache(Protocol):
    """Where the draft has its keys and values of the text."""

    @property
    def context_length(self) -> int: ...

    def reset(self) -> None: ...

    def truncate(self, length: int) -> None: ...


class DraftedText:
    """One sequence. `ahead` has guesses that were checked and not yet asked for, with the logits
    after each."""

    def __init__(self, cache: DraftCache, tokens: Sequence[int] = ()) -> None:
        self._cache = cache
        self.lookup = PromptLookup()
        self.lookup.append(tokens)
        self._read: list[int] = []  # what the draft has in its cache, from `_first` of the text on
        self._first = 0
        self.ahead: deque[tuple[int, NDArray[np.float32]]] = deque()
        # Of the guesses that were checked last: how many; for the draft's, what it gave them; for
        # copied ones, how many tokens before them agreed.
        self._checked = self._agree = 0
        self.confidences: list[float] = []

    def __len__(self) -> int:
        return len(self.lookup)

    def forget(self) -> None:
        """The text is empty."""
        self.lookup = PromptLookup()
        self.forget_draft()

    def forget_draft(self) -> None:
        """The draft has read nothing of it any more."""
        self._cache.reset()
        self._read, self._first = [], 0

    def truncate(self, length: int) -> None:
        self.lookup.truncate(max(0, length))
        if self._read:
            self._shorten(len(self.lookup) - self._first)

    def take_ahead(self, token: int) -> NDArray[np.float32] | None:
        """The logits after it, if it was guessed; it is part of the text then."""
        if not self.ahead or self.ahead[0][0] != token:
            return None
        logits = self.ahead.popleft()[1]
        self.lookup.append([token])
        return logits

    def copy(self, length: DraftLength, room: int) -> list[int]:
        """What followed the last time that the text stood like this, where that is often right."""
        agree = self.lookup.agree()
        count = length.copied(agree, room) if agree else 0
        self._agree = agree if count else 0
        return self.lookup.candidates(count) if count else []

    def behind(self, length: DraftLength) -> tuple[list[int], bool]:
        """What the draft has to read before it can guess; whether it begins again with that."""
        has, text = len(self._read), self.lookup.tokens
        behind = text[self._first + has :] if has else text
        most = self._cache.context_length // 2
        if has + len(behind) + MOST >= self._cache.context_length:
            has = 0  # it is full
        again = min(length.reads_again(len(text), has, len(behind)), most)
        return (list(text[-again:]), True) if again else (list(behind), False)

    def draft_room(self, behind: Sequence[int], again: bool) -> int:
        has = 0 if again else len(self._read)
        return self._cache.context_length - has - len(behind) - 1

    def begin_again(self, behind: Sequence[int]) -> None:
        """The draft reads these, the end of the text."""
        self._cache.reset()
        self._read, self._first = [], len(self.lookup) - len(behind)

    def has_read(self, tokens: Sequence[int]) -> None:
        self._read += tokens

    def forget_wrong_guesses(self) -> None:
        """The draft has read its own guesses; those that were not taken go."""
        if not self._read:
            return
        text, first = self.lookup.tokens, self._first
        same = max(0, len(self._read) - MOST)  # before these nothing was a guess
        end = min(len(self._read), len(text) - first)
        while same < end and self._read[same] == text[first + same]:
            same += 1
        # One token at least is read again: its logits begin the next guess.
        self._shorten(min(same, len(text) - first - 1))

    def checked(self, guess: Sequence[int], rows: NDArray[np.float32]) -> None:
        """Of a guess: logits [tokens, vocabulary] after each."""
        self._checked = len(guess)
        self.ahead.extend(zip(guess, rows, strict=True))

    @property
    def is_checked(self) -> bool:
        """A guess was, since the last round ended."""
        return self._checked > 0

    @property
    def right(self) -> int:
        """Guesses of this round that were taken."""
        return self._checked - len(self.ahead)

    def end_round(self, shares: Shares, wrong: bool) -> tuple[int, bool]:
        """What is left of the guesses goes -> (how many were right, were they the draft's).

        Args:
            wrong: the next one, if one is left, was not what was drawn.
        """
        right, wrong = self.right, wrong and bool(self.ahead)
        drafted = bool(self.confidences)
        if self._agree and self._checked:
            shares.note_copies(self._agree, right, wrong)
        elif drafted:
            shares.note_guesses(self.confidences[: right + wrong], right)
        self.confidences, self._agree, self._checked = [], 0, 0
        self.ahead.clear()
        return right, drafted

    def _shorten(self, length: int) -> None:
        """What the draft has read."""
        if length < 1:
            self.forget_draft()
        elif length < len(self._read):
            self._cache.truncate(length)
            del self._read[length:]


def likeliest(logits: NDArray[np.float32]) -> tuple[int, float]:
    """-> (token, its probability)."""
    token = int(np.argmax(logits))
    return token, 1.0 / float(np.sum(np.exp(logits - logits[token])))
