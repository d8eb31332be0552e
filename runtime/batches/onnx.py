"""Many sequences on an ONNX graph with GroupQueryAttention: a step gives each one more token.

Keys and values lie in one buffer per layer, a row for every sequence. A step of single tokens runs
over the first rows up to the last one in use, each at its own length; a row that has nothing to
say gets a token whose keys and values the next real one overwrites. Pieces of prompts run on their
own row. ONNX Runtime has other kernels for one row than for several: logits depend on the company
by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.sessions.onnx import OnnxSession, cache_names
from dsconv.runtime.sessions.onnx_graph import graph_failures
from dsconv.runtime.sessions.session import refuse_unknown_tokens

from .batch import Piece, Want

MAX_SEQUENCES = 16
FIRST_ROOM = 512  # positions of every row at first
TOKENS_PER_PASS = 256


def can_batch(session: OnnxSession) -> bool:
    """Past and present are one buffer in this machine's memory."""
    return session.shape.shares_buffer and session.memory == "cpu"


class OnnxBatch:
    """Sequences by the number of their row.

    Args:
        cache_bytes: for keys and values: bounds the number of rows at full length.
        sequences: at once, at most; 0 is MAX_SEQUENCES.
    """

    def __init__(self, session: OnnxSession, cache_bytes: int, sequences: int = 0) -> None:
        self._session, self._shape = session, session.shape
        self._names = cache_names(self._shape)
        position = 2 * self._shape.layers * self._shape.kv_heads * self._shape.head_dim
        self._position_bytes = position * np.dtype(session.element).itemsize
        wanted = min(sequences or MAX_SEQUENCES, MAX_SEQUENCES)
        fitting = cache_bytes // (self._position_bytes * min(2048, self.context_length))
        self._rows = max(1, min(wanted, fitting))
        self._most = max(1, cache_bytes // (self._rows * self._position_bytes))
        self._most = min(self._most, self.context_length)
        self._room = 0
        self._buffers: list[NDArray[Any]] = []
        self._lengths: dict[int, int] = {}

    @property
    def vocabulary(self) -> int:
        return self._session.vocabulary

    @property
    def context_length(self) -> int:
        return self._session.context_length

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
        """Of one sequence: rows do not lend each other room."""
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
        kept = min(length, self._lengths[sequence])
        row = self.add()
        for buffer in self._buffers:
            buffer[row, :, :kept] = buffer[sequence, :, :kept]
        self._lengths[row] = kept
        return row

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = min(length, self._lengths[sequence])

    def drop(self, sequence: int) -> None:
        del self._lengths[sequence]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        return all(
            self._lengths[piece.sequence] + len(piece.tokens) <= self._most for piece in pieces
        )

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        for piece in pieces:
            refuse_unknown_tokens(piece.tokens, self.vocabulary)
            if self._lengths[piece.sequence] + len(piece.tokens) > self.context_length:
                raise InputError(
                    f"{len(piece.tokens)} tokens after {self._lengths[piece.sequence]} are beyond "
                    f"the context of {self.context_length}",
                    "the context is fixed in the model or artifact",
                )
        if not self.fits(pieces):
            raise MemoryError("the cache has no room for these tokens")
        self._reserve(max(self._lengths[p.sequence] + len(p.tokens) for p in pieces))
        single = [piece for piece in pieces if len(piece.tokens) == 1]
        found: dict[int, NDArray[np.float32]] = self._decode(single) if single else {}
        for piece in pieces:
            if len(piece.tokens) > 1:
                found[piece.sequence] = self._extend(piece)
        return [_wanted(piece, found[piece.sequence]) for piece in pieces]

    def _decode(self, pieces: Sequence[Piece]) -> dict[int, NDArray[np.float32]]:
        """-> logits [1, vocabulary] by sequence."""
        rows = max(piece.sequence for piece in pieces) + 1
        lengths = [self._lengths.get(row, 0) for row in range(rows)]
        ids = np.zeros((rows, 1), np.int64)
        for piece in pieces:
            ids[piece.sequence, 0] = piece.tokens[0]
        mask = np.zeros((rows, max(lengths) + 1), np.int64)
        for row, length in enumerate(lengths):
            mask[row, : length + 1] = 1
        logits = self._run(ids, mask, slice(0, rows))
        for piece in pieces:
            self._lengths[piece.sequence] += 1
        return {piece.sequence: logits[piece.sequence] for piece in pieces}

    def _extend(self, piece: Piece) -> NDArray[np.float32]:
        end = self._lengths[piece.sequence] + len(piece.tokens)
        ids = np.asarray(piece.tokens, np.int64)[None]
        row = slice(piece.sequence, piece.sequence + 1)
        logits = self._run(ids, np.ones((1, end), np.int64), row)
        self._lengths[piece.sequence] = end
        first: NDArray[np.float32] = logits[0]
        return first

    def _run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], rows: slice
    ) -> NDArray[np.float32]:
        """-> logits [rows, tokens, vocabulary]; keys and values go into the buffers' rows."""
        binding = self._session.graph.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_output("logits", "cpu")
        for (past, present), buffer in zip(self._names, self._buffers, strict=True):
            value = self._session.wrapped(buffer[rows])
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        with graph_failures(self._session.path):
            self._session.graph.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits

    def _reserve(self, length: int) -> None:
        """Longer rows for all: twice as long as before, or as asked."""
        # One more: a row with nothing to say writes behind its end.
        if length + 1 <= self._room or (length <= self._room and self._room >= self._most + 1):
            return
        room = min(self._most + 1, max(FIRST_ROOM, 2 * self._room, length + 1))
        shape = (self._rows, self._shape.kv_heads, room, self._shape.head_dim)
        old: list[NDArray[Any] | None] = [*self._buffers] or [None for _ in self._names]
        self._buffers = [_grown(buffer, shape, self._session.element) for buffer in old]
        self._room = room


def _grown(old: NDArray[Any] | None, shape: tuple[int, ...], element: Any) -> NDArray[Any]:
    new = np.zeros(shape, element)
    if old is not None:
        new[:, :, : old.shape[2]] = old
    return new


def _wanted(piece: Piece, logits: NDArray[np.float32]) -> NDArray[np.float32] | None:
    if piece.want is Want.NONE:
        return None
    return logits if piece.want is Want.EVERY else logits[-1]
