"""Sequences in rows of equal length, which do not lend each other room: what such batches share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.sessions.session import Session, refuse_unknown_tokens

from .batch import Piece

TOKENS_PER_PASS = 256
USUAL_LENGTH = 2048  # of a sequence: rows are as many as have room for so much each


@dataclass(frozen=True)
class Rows:
    """How many rows there are, and how many positions one has at most."""

    count: int
    positions: int

    @classmethod
    def fitting(cls, cache_bytes: int, position_bytes: int, count: int, context: int) -> Rows:
        """Up to `count` rows; fewer where memory is short of USUAL_LENGTH for each."""
        held = cache_bytes // position_bytes
        rows = max(1, min(count, held // min(USUAL_LENGTH, context)))
        return cls(rows, min(context, max(1, held // rows)))


class RowBatch(ABC):
    """The bookkeeping of a batch; a sequence's number is that of its row, the lowest free one."""

    def __init__(self, session: Session, rows: Rows) -> None:
        self._vocabulary, self._context_length = session.vocabulary, session.context_length
        self._rows, self._most = rows.count, rows.positions
        self._lengths: dict[int, int] = {}

    @abstractmethod
    def _copy(self, source: int, row: int, length: int) -> None:
        """The first positions of a row into another one."""

    @abstractmethod
    def _run(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        """A pass over pieces that are right and fit; lengths are still those before it."""

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def independent(self) -> bool:
        return False

    @property
    def max_sequences(self) -> int:
        return self._rows

    @property
    def tokens_per_pass(self) -> int:
        return TOKENS_PER_PASS

    @property
    def capacity(self) -> int:
        """Of one sequence."""
        return self._most

    def room_for(self, length: int) -> int:
        return self._rows if length <= self._most else 0

    @property
    def free_positions(self) -> int:
        return self._most if len(self._lengths) < self._rows else 0

    def add(self) -> int:
        row = next((i for i in range(self._rows) if i not in self._lengths), None)
        if row is None:
            raise ValueError(f"there are {self._rows} sequences already")
        self._lengths[row] = 0
        return row

    def fork(self, sequence: int, length: int) -> int:
        kept = min(length, self.length(sequence))
        row = self.add()
        if kept:
            self._copy(sequence, row, kept)
        self._lengths[row] = kept
        return row

    def length(self, sequence: int) -> int:
        if sequence not in self._lengths:
            raise ValueError(f"there is no sequence {sequence}")
        return self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = min(length, self.length(sequence))

    def drop(self, sequence: int) -> None:
        self.length(sequence)
        del self._lengths[sequence]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        return all(self._end(piece) <= self._most for piece in pieces)

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        self._refuse_wrong(pieces)
        for piece in pieces:
            refuse_unknown_tokens(piece.tokens, self._vocabulary)
            if self._end(piece) > self._context_length:
                raise InputError(
                    f"{len(piece.tokens)} tokens after {self.length(piece.sequence)} are beyond "
                    f"the context of {self._context_length}",
                    "the context is fixed in the model or artifact",
                )
        if not self.fits(pieces):
            raise MemoryError("the cache has no room for these tokens")
        found = self._run(pieces)
        for piece in pieces:
            self._lengths[piece.sequence] += len(piece.tokens)
        return found

    def _refuse_wrong(self, pieces: Sequence[Piece]) -> None:
        total = sum(len(piece.tokens) for piece in pieces)
        if not 1 <= total <= self.tokens_per_pass or not all(piece.tokens for piece in pieces):
            raise ValueError(f"{total} tokens: a pass has 1 to {self.tokens_per_pass}")
        if len({piece.sequence for piece in pieces}) < len(pieces):
            raise ValueError("two pieces of one sequence in a pass")

    def _end(self, piece: Piece) -> int:
        return self.length(piece.sequence) + len(piece.tokens)


def grown_length(now: int, needed: int, first: int, most: int) -> int:
    """Twice as long as before, or as asked."""
    return needed if needed > most else min(most, max(first, 2 * now, needed))
