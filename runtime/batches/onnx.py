"""Many sequences on one ONNX graph: a step gives each one more token.

Keys and values lie in one buffer per layer, a row for every sequence. A step of single tokens runs
over the first rows up to the last one in use, each at its own length; a row that has nothing to
say gets a token that nobody keeps. Pieces of prompts run on their own row. ONNX Runtime has other
kernels for one row than for several: logits depend on the company by rounding.

GroupQueryAttention writes into the buffer itself, behind the length that the mask tells. Standard
graphs append to what they are given: they get the rows up to the longest length, what lies behind
a shorter one's end is masked, and the new column goes where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.sessions.onnx import OnnxSession, cache_names
from dsconv.runtime.sessions.onnx_graph import graph_failures

from .batch import Piece, Want
from .rows import RowBatch, Rows, grown_length

MAX_SEQUENCES = 16
FIRST_ROOM = 512  # positions of every row at first
COPIES = 3  # of the cache, while a standard graph runs: the buffer, what it gets, what it returns


def can_batch(session: OnnxSession) -> bool:
    """The cache is in this machine's memory. Standard graphs: on the CPU, where it was tried; a
    compiler of shapes would compile every step."""
    shared = session.shape.shares_buffer
    return session.memory == "cpu" and (shared or session.placement is None)


class OnnxBatch(RowBatch):
    """Sequences over the graph of a session.

    Args:
        cache_bytes: for keys and values: bounds the number of rows at full length.
        sequences: at once, at most; 0 is MAX_SEQUENCES.
    """

    def __init__(self, session: OnnxSession, cache_bytes: int, sequences: int = 0) -> None:
        self._session, self._shape = session, session.shape
        self._names = cache_names(self._shape)
        position = 2 * self._shape.layers * self._shape.kv_heads * self._shape.head_dim
        size = position * np.dtype(session.element).itemsize
        if not self._shape.shares_buffer:
            size *= COPIES
        count = min(sequences or MAX_SEQUENCES, MAX_SEQUENCES)
        super().__init__(session, Rows.fitting(cache_bytes, size, count, session.context_length))
        self._room = 0
        self._buffers: list[NDArray[Any]] = []

    def _copy(self, source: int, row: int, length: int) -> None:
        for buffer in self._buffers:
            buffer[row, :, :length] = buffer[source, :, :length]

    def _run(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        self._reserve(max(map(self._end, pieces)))
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
        past = max(lengths)
        mask = np.zeros((rows, past + 1), np.int64)
        for row, length in enumerate(lengths):
            mask[row, :length] = 1
            mask[row, length if self._shape.shares_buffer else past] = 1
        if self._shape.shares_buffer:
            logits = self._run_shared(ids, mask, slice(0, rows))
        else:
            positions = np.array(lengths, np.int64)[:, None]
            logits, presents = self._run_standard(ids, mask, slice(0, rows), positions)
            for buffer, present in zip(self._buffers, presents, strict=True):
                for piece in pieces:
                    row = piece.sequence
                    buffer[row, :, lengths[row]] = present[row, :, past]
        return {piece.sequence: logits[piece.sequence] for piece in pieces}

    def _extend(self, piece: Piece) -> NDArray[np.float32]:
        held, end = self.length(piece.sequence), self._end(piece)
        ids = np.asarray(piece.tokens, np.int64)[None]
        mask = np.ones((1, end), np.int64)
        rows = slice(piece.sequence, piece.sequence + 1)
        if self._shape.shares_buffer:
            logits = self._run_shared(ids, mask, rows)
        else:
            positions = np.arange(held, end, dtype=np.int64)[None]
            logits, presents = self._run_standard(ids, mask, rows, positions)
            for buffer, present in zip(self._buffers, presents, strict=True):
                buffer[rows, :, held:end] = present[:, :, held:end]
        first: NDArray[np.float32] = logits[0]
        return first

    def _run_shared(
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

    def _run_standard(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        rows: slice,
        positions: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """-> logits [rows, tokens, vocabulary], present keys and values."""
        past = mask.shape[1] - ids.shape[1]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        for (name, _), buffer in zip(self._names, self._buffers, strict=True):
            feeds[name] = np.ascontiguousarray(buffer[rows, :, :past])
        outputs = ["logits", *(present for _, present in self._names)]
        with graph_failures(self._session.path):
            logits, *presents = self._session.graph.run(outputs, feeds)
        return logits, presents

    def _reserve(self, length: int) -> None:
        # One more: a row with nothing to say writes behind its end.
        if length < self._room:
            return
        self._room = grown_length(self._room, length + 1, FIRST_ROOM, self._most + 1)
        shape = (self._rows, self._shape.kv_heads, self._room, self._shape.head_dim)
        old: list[NDArray[Any] | None] = [*self._buffers] or [None for _ in self._names]
        self._buffers = [_grown(buffer, shape, self._session.element) for buffer in old]


def _grown(old: NDArray[Any] | None, shape: tuple[int, ...], element: Any) -> NDArray[Any]:
    new = np.zeros(shape, element)
    if old is not None:
        new[:, :, : old.shape[2]] = old
    return new


def _wanted(piece: Piece, logits: NDArray[np.float32]) -> NDArray[np.float32] | None:
    if piece.want is Want.NONE:
        return None
    return logits if piece.want is Want.EVERY else logits[-1]
