"""Many sequences on the engine in C++: one read of the weights for all of a pass.

Activations are rounded alike in every pass, so a sequence gets the same bits alone and in any
company. The cache comes in blocks of 256 positions; sequences with the same beginning share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.sessions.native import (
    FLOAT_BYTES,
    NativeSession,
    load_engine_module,
    open_engine,
)
from dsconv.runtime.sessions.session import refuse_unknown_tokens

from .batch import Piece, Want

WANTS = {Want.NONE: 0, Want.LAST: 1, Want.EVERY: 2}
MAX_SEQUENCES = 256  # a pass takes no more tokens


class NativeBatch:
    """Sequences over the file of a session.

    Args:
        activations: own, int8 or int16, of every pass.
        cache_bytes: for keys and values; at least one block is given.
        sequences: at once, at most; 0 is MAX_SEQUENCES.
    """

    def __init__(
        self, session: NativeSession, activations: str, cache_bytes: int, sequences: int = 0
    ) -> None:
        options = replace(
            session.options, decode=activations, prefill=activations, score=activations
        )
        self._engine = open_engine(session.file, options, max(1, cache_bytes))
        self._blocks: int = self._engine.limit_blocks
        module = load_engine_module()
        self._tokens_per_pass: int = module.CHUNK_TOKENS
        self._block: int = module.BLOCK_POSITIONS
        self._vocabulary, self._context_length = session.vocabulary, session.context_length
        self._most = min(sequences or MAX_SEQUENCES, MAX_SEQUENCES)
        self._there: set[int] = set()
        self._bytes = bytearray()

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def independent(self) -> bool:
        return True

    @property
    def max_sequences(self) -> int:
        return self._most

    @property
    def tokens_per_pass(self) -> int:
        return self._tokens_per_pass

    @property
    def capacity(self) -> int:
        return self._blocks * self._block

    def room_for(self, length: int) -> int:
        if length > self._context_length:
            return 0
        return min(self._most, self._blocks // max(1, -(-length // self._block)))

    @property
    def free_positions(self) -> int:
        used: int = self._engine.used_blocks
        return (self._blocks - used) * self._block

    def add(self) -> int:
        self._refuse_too_many()
        return self._new(self._engine.add())

    def fork(self, sequence: int, length: int) -> int:
        self._refuse_too_many()
        return self._new(self._engine.fork(sequence, length))

    def length(self, sequence: int) -> int:
        length: int = self._engine.length(sequence)
        return length

    def truncate(self, sequence: int, length: int) -> None:
        self._engine.truncate_sequence(sequence, length)

    def drop(self, sequence: int) -> None:
        self._engine.drop(sequence)
        self._there.discard(sequence)

    def fits(self, pieces: Sequence[Piece]) -> bool:
        return self._have_room(_encoded(pieces))

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        for piece in pieces:
            refuse_unknown_tokens(piece.tokens, self._vocabulary)
            self._refuse_beyond(piece)
        encoded = _encoded(pieces)
        if not self._have_room(encoded):
            raise MemoryError("the cache has no room for these tokens")
        counts = [_rows(piece) for piece in pieces]
        size = FLOAT_BYTES * self._vocabulary * sum(counts)
        if len(self._bytes) < size:  # a new one: arrays over the old one may still be read
            self._bytes = bytearray(size)
        self._engine.step(encoded, self._bytes)
        rows = np.frombuffer(self._bytes, np.float32, size // FLOAT_BYTES)
        rows = rows.reshape(-1, self._vocabulary)
        return _parts(rows, pieces, counts)

    def _have_room(self, encoded: list[tuple[int, list[int], int]]) -> bool:
        used: int = self._engine.used_blocks
        missing: int = self._engine.missing_blocks(encoded)
        return used + missing <= self._blocks

    def _new(self, sequence: int) -> int:
        self._there.add(sequence)
        return sequence

    def _refuse_too_many(self) -> None:
        if len(self._there) >= self._most:
            raise ValueError(f"there are {len(self._there)} sequences already")

    def _refuse_beyond(self, piece: Piece) -> None:
        length = self.length(piece.sequence)
        if length + len(piece.tokens) > self._context_length:
            raise InputError(
                f"{len(piece.tokens)} tokens after {length} are beyond the context of "
                f"{self._context_length}",
                "the context is fixed in the model or artifact",
            )


def _rows(piece: Piece) -> int:
    return {Want.NONE: 0, Want.LAST: 1, Want.EVERY: len(piece.tokens)}[piece.want]


def _encoded(pieces: Sequence[Piece]) -> list[tuple[int, list[int], int]]:
    """As runtime/native/sequences_binding.cpp reads them."""
    return [(piece.sequence, list(piece.tokens), WANTS[piece.want]) for piece in pieces]


def _parts(
    rows: NDArray[np.float32], pieces: Sequence[Piece], counts: Sequence[int]
) -> list[NDArray[np.float32] | None]:
    found: list[NDArray[np.float32] | None] = []
    start = 0
    for piece, count in zip(pieces, counts, strict=True):
        of_piece = rows[start : start + count]
        start += count
        if piece.want is Want.NONE:
            found.append(None)
        else:
            found.append(of_piece[0] if piece.want is Want.LAST else of_piece)
    return found
