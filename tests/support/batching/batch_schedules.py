"""Random schedules of a batch: sequences join, fork, go on, are cut and leave, side by side.

Every sequence is a beginning of one of some texts, so the logits after each of its tokens are known
from the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Batch, Piece, Want

SHARED = 300  # tokens with which all texts begin


def texts(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """They begin alike for SHARED tokens, or half as many."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, vocabulary, SHARED)
    found = []
    for index in range(count):
        own = rng.integers(0, vocabulary, length)
        same = SHARED if index % 2 else SHARED // 2
        own[:same] = start[:same]
        found.append([int(token) for token in own])
    return found


@dataclass
class Followed:
    """A sequence of the batch, and the text that it is a beginning of."""

    number: int
    text: int
    length: int = 0


class Schedule:
    """Runs passes and keeps where logits are not those of the text alone."""

    def __init__(
        self,
        batch: Batch,
        texts: Sequence[Sequence[int]],
        alone: Sequence[NDArray[np.float32]],
        seed: int,
        tolerance: float = 0.0,
    ) -> None:
        self._batch, self._texts, self._alone = batch, texts, alone
        self._rng, self._tolerance = np.random.default_rng(seed), tolerance
        self._there: list[Followed] = []
        self.wrong: list[str] = []
        self.compared = self.full = 0

    def run(self, passes: int) -> None:
        for _ in range(passes):
            self._change()
            self._step()
        for followed in self._there:
            self._batch.drop(followed.number)

    def _change(self) -> None:
        """Somebody comes, goes or is cut."""
        choice = self._rng.random()
        if len(self._there) < self._batch.max_sequences and (choice < 0.35 or not self._there):
            self._there.append(Followed(self._batch.add(), self._any_text()))
        elif choice < 0.5 and len(self._there) < self._batch.max_sequences:
            self._fork(self._any())
        elif choice < 0.6:
            gone = self._any()
            self._there.remove(gone)
            self._batch.drop(gone.number)
        elif choice < 0.7:
            cut = self._any()
            cut.length = int(self._rng.integers(0, cut.length + 1))
            self._batch.truncate(cut.number, cut.length)

    def _fork(self, source: Followed) -> None:
        length = int(self._rng.integers(0, source.length + 1))
        text = self._any_text()
        if self._texts[text][:length] != self._texts[source.text][:length]:
            text = source.text
        self._there.append(Followed(self._batch.fork(source.number, length), text, length))

    def _any(self) -> Followed:
        return self._there[int(self._rng.integers(len(self._there)))]

    def _any_text(self) -> int:
        return int(self._rng.integers(len(self._texts)))

    def _step(self) -> None:
        pieces, followed = self._pieces()
        if not pieces:
            return
        if not self._batch.fits(pieces):
            self.full += 1
            gone = followed[0]  # as a scheduler would
            self._there.remove(gone)
            self._batch.drop(gone.number)
            return
        rows = self._batch.step(pieces)
        for piece, of, logits in zip(pieces, followed, rows, strict=True):
            end = of.length + len(piece.tokens)
            expected = self._alone[of.text][of.length : end]
            of.length = end
            if piece.want is Want.NONE:
                assert logits is None
                continue
            assert logits is not None
            wanted = expected if piece.want is Want.EVERY else expected[-1]
            self.compared += 1
            if not self._alike(logits, wanted):
                self.wrong.append(f"text {of.text}, {len(piece.tokens)} tokens up to {end}")

    def _alike(self, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
        """To the bit, or, with a tolerance, by so much of the largest logit."""
        if found.shape != wanted.shape:
            return False
        if not self._tolerance:
            return bool(np.array_equal(found, wanted))
        largest = self._tolerance * np.abs(wanted).max()
        return bool(np.abs(found - wanted).max() <= largest)  # NaN is not

    def _pieces(self) -> tuple[list[Piece], list[Followed]]:
        """Most get one token, some a piece of their text."""
        room = self._batch.tokens_per_pass
        pieces: list[Piece] = []
        followed: list[Followed] = []
        for of in self._rng.permutation(np.array(self._there, object)):
            left = min(room, len(self._texts[of.text]) - of.length)
            if left < 1 or self._rng.random() < 0.1:
                continue
            most = left if self._rng.random() < 0.15 else min(left, 12)
            count = 1 if self._rng.random() < 0.5 else int(self._rng.integers(1, most + 1))
            tokens = self._texts[of.text][of.length : of.length + count]
            pieces.append(Piece(of.number, tokens, list(Want)[int(self._rng.integers(3))]))
            followed.append(of)
            room -= count
        return pieces, followed
