"""A batch whose logits are a function of the tokens so far, with few sequences and few blocks.

It holds its users to the protocol: no sequence twice, none that is not there, no pass that does not
fit, no more tokens than a pass takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Piece, Want

VOCABULARY = 23
BLOCK = 8


def logits_after(tokens: Sequence[int]) -> NDArray[np.float32]:
    seed = crc32(np.array(tokens, np.int64).tobytes())
    return np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * 3


class FakeBatch:
    vocabulary = VOCABULARY
    independent = True

    def __init__(self, blocks: int, sequences: int, tokens: int = 16, context: int = 200) -> None:
        self._blocks, self.max_sequences = blocks, sequences
        self.tokens_per_pass, self.context_length = tokens, context
        self.there: dict[int, list[int]] = {}
        self._next = 0
        self.computed = self.passes = 0

    @property
    def capacity(self) -> int:
        return self._blocks * BLOCK

    def room_for(self, length: int) -> int:
        return min(self.max_sequences, self.capacity // max(1, length))

    @property
    def free_positions(self) -> int:
        return (self._blocks - self._used()) * BLOCK

    def _used(self, more: dict[int, int] | None = None) -> int:
        """Blocks, as if nothing was shared."""
        return sum(
            -(-(len(text) + (more or {}).get(number, 0)) // BLOCK)
            for number, text in self.there.items()
        )

    def add(self) -> int:
        return self._new([])

    def fork(self, sequence: int, length: int) -> int:
        assert length <= len(self.there[sequence])
        return self._new(self.there[sequence][:length])

    def _new(self, text: list[int]) -> int:
        assert len(self.there) < self.max_sequences
        self._next += 1
        self.there[self._next] = list(text)
        return self._next

    def length(self, sequence: int) -> int:
        return len(self.there[sequence])

    def truncate(self, sequence: int, length: int) -> None:
        del self.there[sequence][length:]

    def drop(self, sequence: int) -> None:
        del self.there[sequence]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        more = {piece.sequence: len(piece.tokens) for piece in pieces}
        return self._used(more) <= self._blocks

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        assert self.fits(pieces)
        assert len({piece.sequence for piece in pieces}) == len(pieces)
        assert 0 < sum(len(piece.tokens) for piece in pieces) <= self.tokens_per_pass
        self.passes += 1
        return [self._piece(piece) for piece in pieces]

    def logits(self, text: Sequence[int]) -> NDArray[np.float32]:
        return logits_after(text)

    def _piece(self, piece: Piece) -> NDArray[np.float32] | None:
        text = self.there[piece.sequence]
        rows = []
        for token in piece.tokens:
            assert len(text) < self.context_length
            text.append(token)
            self.computed += 1
            rows.append(self.logits(text))
        if piece.want is Want.NONE:
            return None
        return np.stack(rows) if piece.want is Want.EVERY else rows[-1]
