"""A smaller model guesses what comes next; the model itself decides.

As in prompt lookup (`speculation.py`) the caller draws every token from the model's own logits as
if there were no guess, and a guess is used while it is what was drawn. The guess is the draft's
likeliest token, so all of its probability is on one: then this is the rule of speculative sampling
(Leviathan et al. 2023, Chen et al. 2023), the distribution is the model's, and the same seed gives
the same tokens where the model's passes give the same bits for one token and for several.

Drawing the guess from the draft's distribution, with a correction of what replaces a wrong one,
would be accepted a little more often at high temperatures, but the seed would then give other
tokens than without a draft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UnsupportedError, UsageError
from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.sessions.load import DEFAULT_CACHE, Loaded, is_native_file, load
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.text.tokenizer import TextTokenizer

from .draft_length import DraftLength
from .drafted_batch import MOST_TOGETHER, DraftedBatch
from .drafted_text import DraftedText, likeliest


@dataclass(frozen=True)
class Draft:
    """A smaller model that guesses; ids: tokens that both models know."""

    name: str
    small: Loaded
    ids: int

    def guessing(self, session: Session) -> DraftedSession:
        return DraftedSession(session, self.small.session, self.ids)

    def beside(self, batch: Batch, cache_bytes: int) -> DraftedBatch:
        """cache_bytes: for the draft's keys and values."""
        own = open_batch(self.small, BatchOptions(MOST_TOGETHER, max(1, cache_bytes)))
        return DraftedBatch(batch, own, self.ids)


def load_draft(path: str, threads: int, kv: str) -> Loaded:
    """Before the model itself: it is soon refused where it is none.

    Raises:
        UsageError, InputError, UnsupportedError: it cannot be loaded.
    """
    if not path:
        raise UsageError("--draft: no model is named", "name a smaller artifact")
    native = is_native_file(Path(path).expanduser())  # else there is no choice of the cache's type
    return load(path, threads=threads, kv=kv if native else DEFAULT_CACHE)


def draft_for(loaded: Loaded, small: Loaded, name: str) -> Draft:
    """
    Raises:
        UnsupportedError: the two do not have the same tokens.
    """
    mine, theirs = (
        TextTokenizer(model.side_files, model.config).tokens() for model in (loaded, small)
    )
    for token, number in mine.items():
        if theirs.get(token) != number:
            raise UnsupportedError(
                f"--draft {name}: its tokenizer has {theirs.get(token, 'no number')} for "
                f"{token[:40]!r}, the model's has {number}",
                "use a draft of the same family: guesses are compared token by token",
            )
    if len(theirs) != len(mine):
        raise UnsupportedError(
            f"--draft {name}: its tokenizer has {len(theirs)} tokens, the model's {len(mine)}",
            "use a draft of the same family: guesses are compared token by token",
        )
    return Draft(name, small, max(mine.values(), default=0) + 1)


class DraftedSession:
    """A session whose `decode` looks ahead with the guesses of another one; the same protocol.

    The session inside may have seen more than `position` tells; it is rolled back before the next
    pass, and by `truncate(position)`. `proposed` and `accepted` count the guessed tokens.

    Args:
        ids: tokens that both models know: those of the tokenizer.
    """

    def __init__(
        self,
        session: Session,
        draft: Session,
        ids: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session, self._draft, self._clock = session, draft, clock
        self._ids = min(ids, session.vocabulary, draft.vocabulary)
        self._length = DraftLength()
        self._text = DraftedText(draft)  # since `_start` of the sequence
        self._start = session.position
        draft.reset()
        self.proposed = self.accepted = 0

    @property
    def vocabulary(self) -> int:
        return self._session.vocabulary

    @property
    def context_length(self) -> int:
        return self._session.context_length

    @property
    def position(self) -> int:
        return self._start + len(self._text)

    def reset(self) -> None:
        self._end_round(wrong=False)
        self._session.reset()
        self._text.forget()
        self._start = 0

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._append(tokens)
        return self._session.prefill(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._append(tokens)
        return self._session.extend(tokens)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self.extend(tokens)

    def truncate(self, length: int) -> None:
        self._end_round(wrong=False)
        self._text.truncate(length - self._start)
        self._start = min(self._start, length)
        self._roll_back()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [vocabulary], made together with those of what may follow."""
        known = self._text.take_ahead(token)
        if known is not None:
            self.accepted += 1
            if not self._text.ahead:
                self._end_round(wrong=False)
            return known
        self._end_round(wrong=True)
        self._append([token])
        room = self.context_length - self.position
        guess = self._text.copy(self._length, room) or self._guess(room)
        start = self._clock()
        if not guess:
            logits = self._session.decode(token)
            self._length.plain(self._clock() - start)
            return logits
        rows = self._session.extend([token, *guess])
        self._length.checked(len(guess), self._clock() - start)
        self._text.checked(guess, rows[1:])
        self.proposed += len(guess)
        first: NDArray[np.float32] = rows[0]
        return first

    def _guess(self, room: int) -> list[int]:
        """Tokens that are worth a wider pass, or none."""
        text, length = self._text, self._length
        text.forget_wrong_guesses()
        behind, again = text.behind(length)
        room = min(room, text.draft_room(behind, again))
        if not length.begin(len(behind), room):
            return []
        start = self._clock()
        if again:
            text.begin_again(behind)
        logits = self._draft.decode(behind[0]) if len(behind) == 1 else self._draft.prefill(behind)
        text.has_read(behind)
        guess: list[int] = []
        chance = 1.0
        while True:
            token, confidence = likeliest(logits[: self._ids])
            guess.append(token)
            text.confidences.append(confidence)
            chance *= length.chance(confidence)
            if not length.goes_on(len(guess), room, chance):
                break
            logits = self._draft.decode(token)
            text.has_read([token])
        length.drafted(len(guess), len(behind), self._clock() - start)
        if len(guess) == 1 and not length.is_worth_checking(chance):
            length.unchecked()
            text.confidences.clear()
            return []
        return guess

    def _append(self, tokens: Sequence[int]) -> None:
        self._end_round(wrong=False)
        self._roll_back()
        self._text.lookup.append(tokens)

    def _end_round(self, wrong: bool) -> None:
        """wrong: the next guess, if one is left, was not what was drawn."""
        if not self._text.is_checked:
            return
        right, drafted = self._text.end_round(self._length.shares, wrong)
        self._length.end_round(right + 1.0, drafted)

    def _roll_back(self) -> None:
        if self._session.position > self.position:
            self._session.truncate(self.position)
