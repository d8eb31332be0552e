"""Guesses for several texts at once, each step of the draft a pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Batch, Piece, Want

from .draft_length import DraftLength
from .drafted_text import DraftedText, likeliest

FEW_BEHIND = 2  # tokens that are read with the first guess: the last one drawn, and one guessed


class DraftSequence:
    """A sequence of the draft's batch, made when it is needed."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.number: int | None = None

    @property
    def context_length(self) -> int:
        return min(self._batch.context_length, self._batch.capacity)

    def reset(self) -> None:
        if self.number is not None:
            self._batch.drop(self.number)
            self.number = None

    def truncate(self, length: int) -> None:
        assert self.number is not None
        self._batch.truncate(self.number, length)

    def piece(self, tokens: Sequence[int], want: Want = Want.LAST) -> Piece:
        if self.number is None:
            self.number = self._batch.add()
        return Piece(self.number, tokens, want)


@dataclass(frozen=True, eq=False)
class Drafted:
    """A sequence of the model, and of the draft."""

    text: DraftedText
    draft: DraftSequence


@dataclass(eq=False)
class Guess:
    """On its way: what the draft reads next for it, and how sure it is of all."""

    drafted: Drafted
    behind: list[int]
    again: bool
    room: int
    tokens: list[int] = field(default_factory=list)
    chance: float = 1.0

    def add(self, token: int, confidence: float, length: DraftLength) -> None:
        self.tokens.append(token)
        self.behind = [token]
        self.drafted.text.confidences.append(confidence)
        self.chance *= length.chance(confidence)

    def give_up(self) -> None:
        self.tokens.clear()
        self.drafted.text.confidences.clear()


class BatchGuesser:
    """context: positions that a text may have. ids: tokens that may be guessed."""

    def __init__(self, draft: Batch, context: int, ids: int, clock: Callable[[], float]) -> None:
        self._draft, self._context, self._ids, self._clock = draft, context, ids, clock
        # Who has a sequence of the draft: those that guessed last, and others before them.
        self._busy: list[Drafted] = []
        self._idle: list[Drafted] = []

    def guess(self, texts: Sequence[Drafted], length: DraftLength) -> list[list[int]]:
        """For each text: tokens that are worth a wider pass, or none."""
        found: dict[Drafted, list[int]] = {}
        others: list[Guess] = []
        for drafted in texts:
            text = drafted.text
            room = self._context - len(text)
            found[drafted] = text.copy(length, room)
            if not found[drafted]:
                text.forget_wrong_guesses()
                behind, again = text.behind(length)
                room = min(room, text.draft_room(behind, again))
                others.append(Guess(drafted, behind, again, room))
        guesses = self._affordable([guess for guess in others if guess.room > 0], length)
        if guesses and self._read(guesses, length):
            self._write(guesses, length)
            found |= {guess.drafted: guess.tokens for guess in guesses}
            if not any(found.values()):
                length.unchecked()
        return [found[drafted] for drafted in texts]

    def _affordable(self, guesses: list[Guess], length: DraftLength) -> list[Guess]:
        """All of them, or those for which nothing has to be read, or none."""
        current = [guess for guess in guesses if len(guess.behind) <= FEW_BEHIND]
        for some in (guesses, current):
            behind = sum(len(g.behind) for g in some if len(g.behind) > FEW_BEHIND)
            if len(some) <= self._draft.max_sequences and length.begin(behind or 1, len(some)):
                return some
        return []

    def _read(self, guesses: Sequence[Guess], length: DraftLength) -> bool:
        """Up to the last token before a guess; False where the draft has no memory for that."""
        self._make_room([guess.drafted for guess in guesses])
        for guess in guesses:
            if guess.again:
                guess.drafted.text.begin_again(guess.behind)
        reading = [guess for guess in guesses if len(guess.behind) > FEW_BEHIND]
        start, count = self._clock(), 0
        for guess in reading:
            *before, last = guess.behind
            for first in range(0, len(before), self._draft.tokens_per_pass):
                part = before[first : first + self._draft.tokens_per_pass]
                if not self._step([guess.drafted.draft.piece(part, Want.NONE)]):
                    return False
                guess.drafted.text.has_read(part)
            count += len(before)
            guess.behind = [last]
        if count:
            length.read(count, self._clock() - start)
        return True

    def _write(self, guesses: Sequence[Guess], length: DraftLength) -> None:
        start, steps, active = self._clock(), 0, list(guesses)
        while active:
            rows = self._step([guess.drafted.draft.piece(guess.behind) for guess in active])
            if not rows:
                break
            steps += 1
            for guess, logits in zip(active, rows, strict=True):
                assert logits is not None
                guess.drafted.text.has_read(guess.behind)
                guess.add(*likeliest(logits[: self._ids]), length)
            active = [g for g in active if length.goes_on(len(g.tokens), g.room, g.chance)]
        if steps:
            length.drafted(steps, 1, self._clock() - start)
        for guess in guesses:
            if len(guess.tokens) == 1 and not length.is_worth_checking(guess.chance):
                guess.give_up()

    def _step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        """A pass of the draft; nothing where its cache is full."""
        while not self._draft.fits(pieces):
            if not self._idle:
                return []
            self._idle.pop(0).text.forget_draft()
        return self._draft.step(pieces)

    def _make_room(self, wanted: Sequence[Drafted]) -> None:
        """Those that guessed longest ago give their sequence of the draft up."""
        there = [*self._idle, *self._busy]
        self._idle = [d for d in there if d.draft.number is not None and d not in wanted]
        self._busy = list(wanted)
        while len(self._idle) + len(wanted) > self._draft.max_sequences:
            self._idle.pop(0).text.forget_draft()
