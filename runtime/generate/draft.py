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

from .draft_length import MOST, DraftLength
from .speculation import PromptLookup


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
        self._text = PromptLookup()  # since `_start` of the sequence
        self._start = session.position
        self._read: list[int] = []  # what the draft has in its cache, from `_first` of the text on
        self._first = 0
        self._ahead: deque[tuple[int, NDArray[np.float32]]] = deque()
        # Of the guesses that were checked last: how many; for the draft's, what it gave them; for
        # copied ones, how many tokens before them agreed.
        self._checked = self._agree = 0
        self._confidences: list[float] = []
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
        self._draft.reset()
        self._text, self._read = PromptLookup(), []
        self._start = self._first = 0

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
        self._text.truncate(max(0, length - self._start))
        self._start = min(self._start, length)
        if self._read:
            self._shorten(len(self._text) - self._first)
        self._roll_back()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [vocabulary], made together with those of what may follow."""
        if self._ahead and self._ahead[0][0] == token:
            logits = self._ahead.popleft()[1]
            self.accepted += 1
            self._text.append([token])
            if not self._ahead:
                self._end_round(wrong=False)
            return logits
        self._end_round(wrong=True)
        self._append([token])
        guess = self._copy() or self._guess()
        start = self._clock()
        if not guess:
            logits = self._session.decode(token)
            self._length.plain(self._clock() - start)
            return logits
        rows = self._session.extend([token, *guess])
        self._length.checked(len(guess), self._clock() - start)
        self._checked = len(guess)
        self.proposed += len(guess)
        self._ahead.extend(zip(guess, rows[1:], strict=True))
        first: NDArray[np.float32] = rows[0]
        return first

    def _copy(self) -> list[int]:
        """What followed the last time that the text stood like this, where that is often right."""
        agree = self._text.agree()
        room = self.context_length - self.position
        count = self._length.copied(agree, room) if agree else 0
        self._agree = agree if count else 0
        return self._text.candidates(count) if count else []

    def _guess(self) -> list[int]:
        """Tokens that are worth a wider pass, or none."""
        self._forget_wrong_guesses()
        behind, again = self._behind()
        room = min(self.context_length - self.position, self._draft_room(behind, again))
        if not self._length.begin(len(behind), room):
            return []
        start = self._clock()
        if again:
            self._draft.reset()
            self._read, self._first = [], len(self._text) - len(behind)
        logits = self._draft.decode(behind[0]) if len(behind) == 1 else self._draft.prefill(behind)
        self._read += behind
        guess: list[int] = []
        chance = 1.0
        while True:
            token, confidence = _likeliest(logits[: self._ids])
            guess.append(token)
            self._confidences.append(confidence)
            chance *= self._length.chance(confidence)
            if not self._length.goes_on(len(guess), room, chance):
                break
            logits = self._draft.decode(token)
            self._read.append(token)
        self._length.drafted(len(guess), len(behind), self._clock() - start)
        if len(guess) == 1 and not self._length.is_worth_checking(chance):
            self._length.unchecked()
            self._confidences = []
            return []
        return guess

    def _behind(self) -> tuple[list[int], bool]:
        """What the draft has to read before it can go on; whether it begins again with that."""
        has, text = len(self._read), self._text.tokens
        behind = text[self._first + has :] if has else text
        most = self._draft.context_length // 2
        if has + len(behind) + MOST >= self._draft.context_length:
            has = 0  # it is full
        again = min(self._length.reads_again(len(text), has, len(behind)), most)
        return (list(text[-again:]), True) if again else (list(behind), False)

    def _draft_room(self, behind: Sequence[int], again: bool) -> int:
        has = 0 if again else len(self._read)
        return self._draft.context_length - has - len(behind) - 1

    def _forget_wrong_guesses(self) -> None:
        """The draft has read its own guesses; those that were not taken go."""
        if not self._read:
            return
        text, first = self._text.tokens, self._first
        same = max(0, len(self._read) - MOST)  # before these nothing was a guess
        end = min(len(self._read), len(text) - first)
        while same < end and self._read[same] == text[first + same]:
            same += 1
        # One token at least is read again: its logits begin the next guess.
        self._shorten(min(same, len(text) - first - 1))

    def _shorten(self, length: int) -> None:
        """What the draft has read."""
        if length < 1:
            self._draft.reset()
            self._read, self._first = [], 0
        elif length < len(self._read):
            self._draft.truncate(length)
            del self._read[length:]

    def _append(self, tokens: Sequence[int]) -> None:
        self._end_round(wrong=False)
        self._roll_back()
        self._text.append(tokens)

    def _end_round(self, wrong: bool) -> None:
        """wrong: the next guess, if one is left, was not what was drawn."""
        right, wrong = self._checked - len(self._ahead), wrong and bool(self._ahead)
        if self._agree:
            self._length.outcome_of_copy(self._agree, right, wrong)
        elif self._confidences:
            self._length.outcome(self._confidences[: right + wrong], right)
        self._confidences, self._agree, self._checked = [], 0, 0
        self._ahead.clear()

    def _roll_back(self) -> None:
        if self._session.position > self.position:
            self._session.truncate(self.position)


def _likeliest(logits: NDArray[np.float32]) -> tuple[int, float]:
    """-> (token, its probability)."""
    token = int(np.argmax(logits))
    return token, 1.0 / float(np.sum(np.exp(logits - logits[token])))
