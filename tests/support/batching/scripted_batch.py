"""A batch without a model: logits are a function of the tokens so far, and the rules are strict.

The cache comes in blocks, which forks share until one of them writes, or each have for themselves.
Arrays of a pass hold NaN after the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Piece, Want

STATES = 4093  # different logits


class ScriptedBatch:
    def __init__(
        self,
        blocks: int,
        block: int = 8,
        sequences: int = 4,
        tokens_per_pass: int = 16,
        context: int = 96,
        vocabulary: int = 37,
        shares: bool = True,
    ) -> None:
        self.vocabulary, self.context_length = vocabulary, context
        self.max_sequences, self.tokens_per_pass = sequences, tokens_per_pass
        self.independent = True
        self._blocks, self._block, self._shares = blocks, block, shares
        self.there: dict[int, list[int]] = {}
        self._tables: dict[int, list[int]] = {}  # blocks of each sequence
        self._next = self._next_block = 0
        self._given: list[NDArray[np.float32]] = []
        self._logits = np.random.default_rng(5).standard_normal((STATES, vocabulary), np.float32)
        self.computed = 0
        self.passes: list[list[Piece]] = []

    @property
    def capacity(self) -> int:
        return self._blocks * self._block

    @property
    def used_blocks(self) -> int:
        tables = self._tables.values()
        if not self._shares:
            return sum(map(len, tables))
        return len({block for table in tables for block in table})

    @property
    def free_positions(self) -> int:
        return (self._blocks - self.used_blocks) * self._block

    def add(self) -> int:
        assert len(self.there) < self.max_sequences, "too many sequences"
        self._next += 1
        self.there[self._next], self._tables[self._next] = [], []
        return self._next

    def fork(self, sequence: int, length: int) -> int:
        assert 0 <= length <= len(self.there[sequence])
        number = self.add()
        self.there[number] = self.there[sequence][:length]
        self._tables[number] = self._tables[sequence][: self._blocks_of(length)]
        return number

    def length(self, sequence: int) -> int:
        return len(self.there[sequence])

    def truncate(self, sequence: int, length: int) -> None:
        assert 0 <= length <= len(self.there[sequence])
        del self.there[sequence][length:]
        del self._tables[sequence][self._blocks_of(length) :]

    def drop(self, sequence: int) -> None:
        del self.there[sequence], self._tables[sequence]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        self._check(pieces)
        return sum(map(self._missing, pieces)) + self.used_blocks <= self._blocks

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        if not self.fits(pieces):
            raise MemoryError("no room")
        for old in self._given:
            old.fill(np.nan)
        found = [self._run(piece) for piece in pieces]
        self._given = [rows for rows in found if rows is not None]
        self.computed += sum(len(piece.tokens) for piece in pieces)
        self.passes.append(list(pieces))
        return found

    def logits_after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        state = 1
        for token in tokens:
            state = (state * 31 + token + 7) % 1_000_003
        return self._logits[state % STATES].copy()

    def _check(self, pieces: Sequence[Piece]) -> None:
        assert pieces, "an empty pass"
        assert len({piece.sequence for piece in pieces}) == len(pieces), "one sequence twice"
        assert sum(len(piece.tokens) for piece in pieces) <= self.tokens_per_pass
        for piece in pieces:
            assert piece.tokens, "nothing for a sequence"
            assert all(0 <= token < self.vocabulary for token in piece.tokens)
            assert self.length(piece.sequence) + len(piece.tokens) <= self.context_length

    def _run(self, piece: Piece) -> NDArray[np.float32] | None:
        text = self.there[piece.sequence]
        self._write(piece)
        start = len(text)
        text += piece.tokens
        if piece.want is Want.NONE:
            return None
        if piece.want is Want.LAST:
            return self.logits_after(text)
        ends = range(start + 1, len(text) + 1)
        return np.stack([self.logits_after(text[:end]) for end in ends])

    def _write(self, piece: Piece) -> None:
        table = self._tables[piece.sequence]
        start = self.length(piece.sequence)
        if start % self._block:
            del table[-1]  # the one that is written on: its own from now on
        while len(table) < self._blocks_of(start + len(piece.tokens)):
            self._next_block += 1
            table.append(self._next_block)

    def _missing(self, piece: Piece) -> int:
        start, table = self.length(piece.sequence), self._tables[piece.sequence]
        missing = self._blocks_of(start + len(piece.tokens)) - len(table)
        if start % self._block and self._shares:
            missing += sum(table[-1] in other for other in self._tables.values()) > 1
        return missing

    def _blocks_of(self, length: int) -> int:
        return -(-length // self._block)


def longest_pass(batch: ScriptedBatch) -> int:
    """Tokens of the largest pass that had the next token of a text: one was chosen in the pass
    before (logits of EVERY token may be those of a prompt that goes on)."""
    sizes = [
        sum(len(piece.tokens) for piece in pieces)
        for before, pieces in pairwise(batch.passes)
        if {p.sequence for p in before if p.want is Want.LAST}
        & {p.sequence for p in pieces if len(p.tokens) == 1}
    ]
    return max(sizes, default=0)
