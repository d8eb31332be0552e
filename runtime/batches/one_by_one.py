"""A session as a batch of one: for runtimes that hold one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.sessions.session import Session

from .batch import Piece, Want

TOKENS_PER_PASS = 256


class OneByOne:
    """The sequence 0, or none. Its logits are those of the session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._there = False

    @property
    def vocabulary(self) -> int:
        return self._session.vocabulary

    @property
    def context_length(self) -> int:
        return self._session.context_length

    @property
    def independent(self) -> bool:
        return True  # of company that it never has

    @property
    def max_sequences(self) -> int:
        return 1

    @property
    def tokens_per_pass(self) -> int:
        return TOKENS_PER_PASS

    @property
    def capacity(self) -> int:
        return self._session.context_length

    def room_for(self, length: int) -> int:
        return int(length <= self.capacity)

    @property
    def free_positions(self) -> int:
        return 0 if self._there else self.capacity

    def add(self) -> int:
        self._check(0, there=False)
        self._session.reset()
        self._there = True
        return 0

    def fork(self, sequence: int, length: int) -> int:
        raise ValueError("a second sequence beside the only one")

    def length(self, sequence: int) -> int:
        self._check(sequence)
        return self._session.position

    def truncate(self, sequence: int, length: int) -> None:
        self._check(sequence)
        if length == 0:
            self._session.reset()
        elif length < self._session.position:
            self._session.truncate(length)

    def drop(self, sequence: int) -> None:
        self._check(sequence)
        self._session.reset()
        self._there = False

    def fits(self, pieces: Sequence[Piece]) -> bool:
        return all(
            self.length(piece.sequence) + len(piece.tokens) <= self.capacity for piece in pieces
        )

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        return [self._run(piece) for piece in pieces]

    def _run(self, piece: Piece) -> NDArray[np.float32] | None:
        if not self.fits([piece]):
            raise InputError(
                f"{len(piece.tokens)} tokens after {self._session.position} are beyond the "
                f"context of {self.context_length}",
                "the context is fixed in the model or artifact",
            )
        if piece.want is Want.EVERY:
            return self._session.extend(piece.tokens)
        if len(piece.tokens) == 1:
            logits = self._session.decode(piece.tokens[0])
        else:
            logits = self._session.prefill(piece.tokens)
        return logits if piece.want is Want.LAST else None

    def _check(self, sequence: int, there: bool = True) -> None:
        if sequence != 0 or self._there != there:
            raise ValueError(f"sequence {sequence} is {'not there' if there else 'there already'}")
