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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UnsupportedError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.text.tokenizer import TextTokenizer

from .draft_length import DraftLength

FEWEST_READ = 16  # tokens of the text, its last ones, that a draft begins with


@dataclass(frozen=True)
class Draft:
    """A smaller model that guesses; ids: tokens that both models know."""

    name: str
    session: Session
    ids: int

    def guessing(self, session: Session) -> DraftedSession:
        return DraftedSession(session, self.session, self.ids)


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
    return Draft(name, small.session, max(mine.values(), default=0) + 1)


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
        self._text: list[int] = []  # since `_start` of the sequence
        self._start = session.position
        self._read: list[int] = []  # what the draft has in its cache, from `_first` of the text on
        self._first = 0
        self._ahead: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._pending = 0  # guesses of the round that was checked last
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
        self._session.reset()
        self._draft.reset()
        self._text, self._read = [], []
        self._start = self._first = 0
        self._ahead.clear()

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
        del self._text[max(0, length - self._start) :]
        self._start = min(self._start, length)
        self._end_round(wrong=False)
        self._roll_back()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [vocabulary], made together with those of what may follow."""
        if self._ahead and self._ahead[0][0] == token:
            logits = self._ahead.popleft()[1]
            self.accepted += 1
            self._text.append(token)
            if not self._ahead:
                self._end_round(wrong=False)
            return logits
        if self._ahead:
            self._end_round(wrong=True)
        self._append([token])
        guess, seconds, behind = self._guess()
        start = self._clock()
        if not guess:
            logits = self._session.decode(token)
            self._length.plain(self._clock() - start)
            return logits
        rows = self._session.extend([token, *guess])
        self._length.checked(len(guess), self._clock() - start, seconds, behind)
        self.proposed += len(guess)
        self._pending = len(guess)
        self._ahead.extend(zip(guess, rows[1:], strict=True))
        first: NDArray[np.float32] = rows[0]
        return first

    def _guess(self) -> tuple[list[int], float, int]:
        """-> (tokens, seconds that they took, tokens that the draft read before)."""
        self._forget_wrong_guesses()
        room = self.context_length - self.position
        behind = self._behind()
        count = self._length.choose(len(behind), min(room, self._draft_room(behind)))
        if count < 1:
            return [], 0.0, 0
        start = self._clock()
        guess: list[int] = []
        if not self._read:
            self._first = len(self._text) - len(behind)
        logits = self._draft.decode(behind[0]) if len(behind) == 1 else self._draft.prefill(behind)
        self._read += behind
        while True:
            guess.append(int(np.argmax(logits[: self._ids])))
            if len(guess) == count:
                return guess, self._clock() - start, len(behind)
            logits = self._draft.decode(guess[-1])
            self._read.append(guess[-1])

    def _behind(self) -> list[int]:
        """What the draft has to read before it can go on."""
        affordable = max(FEWEST_READ, self._length.readable())
        if self._first > 0 and affordable >= len(self._text):  # guessing pays: read all of it
            self._draft.reset()
            self._read, self._first = [], 0
        if not self._read:
            return self._text[-affordable:]
        return self._text[self._first + len(self._read) :]

    def _draft_room(self, behind: Sequence[int]) -> int:
        return self._draft.context_length - len(self._read) - len(behind) - 1

    def _forget_wrong_guesses(self) -> None:
        """The draft has read its own guesses; those that were not taken go."""
        text = self._text[self._first : self._first + len(self._read)]
        pairs = zip(self._read, text, strict=False)
        same = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(self._read))
        )
        # One token at least is read again: its logits begin the next guess.
        same = min(same, len(self._text) - self._first - 1)
        if same < 1:
            self._draft.reset()
            self._read, self._first = [], 0
        elif same < len(self._read):
            self._draft.truncate(same)
            del self._read[same:]

    def _append(self, tokens: Sequence[int]) -> None:
        self._roll_back()
        self._text += tokens

    def _end_round(self, wrong: bool) -> None:
        if self._pending:
            self._length.outcome(self._pending - len(self._ahead), wrong)
        self._pending = 0
        self._ahead.clear()

    def _roll_back(self) -> None:
        self._ahead.clear()
        if self._session.position > self.position:
            self._session.truncate(self.position)
