"""A batch that looks ahead with the guesses of a smaller model; the same protocol, the same logits.

As in `draft.py` the caller draws every token from the model's own logits. A pass has the next
token of each text and the guesses of what follows it; while a text goes on as guessed its logits
are there (`known`), without a pass.

Guesses pay while there is little to compute: for a few texts at once, and beside no prompt. How
long they are is measured for every number of texts apart (`draft_length.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Batch, Piece, Want

from .batch_guesser import BatchGuesser, Drafted, DraftSequence
from .draft_length import DraftLength, Shares
from .drafted_text import DraftedText

MOST_TOGETHER = 8  # texts that are guessed for in a pass


@dataclass(eq=False)
class Round:
    """Texts that were checked together, and the tokens that this gave so far."""

    length: DraftLength
    open: list[DraftedText]
    texts: int
    given: int
    drafted: bool = False

    def ended(self, text: DraftedText, right: int, drafted: bool) -> None:
        if text in self.open:
            self.open.remove(text)
            self.given += right
            self.drafted |= drafted

    def end(self) -> None:
        for text in self.open:  # more of its guesses may be right, but nobody waited for that
            self.given += text.right
            self.drafted |= bool(text.confidences)
        self.length.end_round(self.given / self.texts, self.drafted)


class DraftedBatch:
    """Sequences of `batch`, which must be empty, guessed for by those of `draft`.

    A sequence of the batch may be longer than `length` tells, by guesses; it is cut before its
    next pass, and where their memory is needed.

    Args:
        ids: tokens that both models know: those of the tokenizer.
    """

    def __init__(
        self,
        batch: Batch,
        draft: Batch,
        ids: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._batch, self._draft, self._clock = batch, draft, clock
        ids = min(ids, batch.vocabulary, draft.vocabulary)
        self._guesser = BatchGuesser(draft, batch.context_length, ids, clock)
        self._sequences: dict[int, Drafted] = {}
        self._shares = Shares()
        self._lengths: dict[int, DraftLength] = {}  # by the texts of a pass
        self._round: Round | None = None
        self._guessed_for: Sequence[DraftedText] = ()
        self.proposed = self.accepted = 0

    @property
    def vocabulary(self) -> int:
        return self._batch.vocabulary

    @property
    def context_length(self) -> int:
        return self._batch.context_length

    @property
    def independent(self) -> bool:
        return self._batch.independent

    @property
    def max_sequences(self) -> int:
        return self._batch.max_sequences

    @property
    def tokens_per_pass(self) -> int:
        return self._batch.tokens_per_pass

    @property
    def capacity(self) -> int:
        return self._batch.capacity

    def room_for(self, length: int) -> int:
        return self._batch.room_for(length)

    @property
    def free_positions(self) -> int:
        return self._batch.free_positions

    def add(self) -> int:
        return self._new(self._batch.add())

    def fork(self, sequence: int, length: int) -> int:
        tokens = self._sequences[sequence].text.lookup.tokens[:length]
        return self._new(self._batch.fork(sequence, length), tokens)

    def length(self, sequence: int) -> int:
        return len(self._sequences[sequence].text)

    def truncate(self, sequence: int, length: int) -> None:
        self._forget_guesses(sequence)
        self._batch.truncate(sequence, length)
        self._sequences[sequence].text.truncate(length)

    def drop(self, sequence: int) -> None:
        self._forget_guesses(sequence)
        self._batch.drop(sequence)
        self._sequences.pop(sequence).draft.reset()

    def known(self, piece: Piece) -> bool:
        """Are its logits there, from an earlier pass?"""
        ahead = self._sequences[piece.sequence].text.ahead
        return piece.want is Want.LAST and bool(ahead) and list(piece.tokens) == [ahead[0][0]]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        needed = [piece for piece in pieces if not self.known(piece)]
        for piece in needed:
            self._forget_guesses(piece.sequence, piece.tokens[0])
        if not needed or self._batch.fits(needed):
            return True
        for sequence in self._sequences:  # their memory
            self._forget_guesses(sequence)
        return self._batch.fits(pieces)

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        known = [self.known(piece) for piece in pieces]
        needed = [piece for piece, is_known in zip(pieces, known, strict=True) if not is_known]
        rows = iter(self._pass(needed) if needed else [])
        return [
            self._take(piece) if is_known else next(rows)
            for piece, is_known in zip(pieces, known, strict=True)
        ]

    def _take(self, piece: Piece) -> NDArray[np.float32] | None:
        self.accepted += 1
        return self._sequences[piece.sequence].text.take_ahead(piece.tokens[0])

    def _pass(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        for piece in pieces:
            self._forget_guesses(piece.sequence, piece.tokens[0])
        if self._round is not None:
            self._round.end()
            self._round = None
        texts = [self._sequences[piece.sequence].text for piece in pieces]
        for text, piece in zip(texts, pieces, strict=True):
            text.lookup.append(piece.tokens)
        try:
            if _can_be_guessed_for(pieces):
                return self._guessed_pass(pieces, texts)
            return self._batch.step(pieces)
        except Exception:
            for text, piece in zip(texts, pieces, strict=True):
                text.truncate(len(text) - len(piece.tokens))
            raise

    def _guessed_pass(
        self, pieces: Sequence[Piece], texts: Sequence[DraftedText]
    ) -> list[NDArray[np.float32] | None]:
        for text in self._guessed_for:
            if text not in texts:  # it may lie in the cache for long, and nobody goes on with it
                text.lookup.forget_ends()
        self._guessed_for = texts
        length = self._lengths.setdefault(len(pieces), DraftLength(self._shares))
        guesses = self._guesser.guess([self._sequences[p.sequence] for p in pieces], length)
        wider = _wider(pieces, guesses)
        if wider != pieces and not self._batch.fits(wider):
            guesses, wider = [[] for _ in pieces], pieces
            length.unchecked()
        start = self._clock()
        found = self._batch.step(wider)
        seconds = self._clock() - start
        count = sum(map(len, guesses))
        if not count:
            length.plain(seconds)
            return found
        self.proposed += count
        length.checked(max(1, round(count / len(pieces))), seconds)
        self._round = Round(length, list(texts), len(texts), len(texts))
        for text, guess, logits in zip(texts, guesses, found, strict=True):
            if guess:
                assert logits is not None
                text.checked(guess, logits[1:].copy())  # the next pass may reuse the array
        return [
            logits[0] if guess and logits is not None else logits
            for guess, logits in zip(guesses, found, strict=True)
        ]

    def _forget_guesses(self, sequence: int, drawn: int | None = None) -> None:
        """drawn: what comes instead, if that is known."""
        text = self._sequences[sequence].text
        wrong = drawn is not None and bool(text.ahead) and text.ahead[0][0] != drawn
        if text.is_checked:
            outcome = text.end_round(self._shares, wrong)
            if self._round is not None:
                self._round.ended(text, *outcome)
        if self._batch.length(sequence) > len(text):
            self._batch.truncate(sequence, len(text))

    def _new(self, number: int, tokens: Sequence[int] = ()) -> int:
        draft = DraftSequence(self._draft)
        self._sequences[number] = Drafted(DraftedText(draft, tokens), draft)
        return number


def _can_be_guessed_for(pieces: Sequence[Piece]) -> bool:
    if len(pieces) > MOST_TOGETHER:
        return False
    return all(len(piece.tokens) == 1 and piece.want is Want.LAST for piece in pieces)


def _wider(pieces: Sequence[Piece], guesses: Sequence[Sequence[int]]) -> Sequence[Piece]:
    if not any(guesses):
        return pieces
    return [
        Piece(piece.sequence, (*piece.tokens, *guess), Want.EVERY) if guess else piece
        for piece, guess in zip(pieces, guesses, strict=True)
    ]
