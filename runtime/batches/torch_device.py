"""Many sequences on a device of torch, or on the CPU: a pass reads the weights once for all.

All tokens of a pass are rows of one product. Keys and values lie in one tensor per layer, a row for
every sequence: single tokens attend together over the rows up to the last one in use, pieces of
prompts each over their own. Kernels differ with the number of rows, so logits depend on the company
by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.families.base import DecoderConfig
from dsconv.runtime.memory import free_memory_bytes
from dsconv.runtime.sessions.torch_device_session import AcceleratorSession
from dsconv.runtime.sessions.torch_reference import TorchSession

from .batch import Piece, Want
from .rows import RowBatch, Rows, grown_length
from .torch_pass import DeviceOps, Pass, Prompt, ReferenceOps, RowCache

MAX_SEQUENCES = 64
UNTOLD_BYTES = 4 << 30
FIRST_ROOM = 512  # positions of every row at first


class TorchBatch(RowBatch):
    """Sequences over the weights of a session.

    Args:
        cache_bytes: for keys and values: bounds the number of rows at full length.
        sequences: at once, at most; 0 is MAX_SEQUENCES.
    """

    def __init__(
        self, session: AcceleratorSession | TorchSession, cache_bytes: int, sequences: int = 0
    ) -> None:
        self._session = session
        config = session.decoder.config
        count = min(sequences or MAX_SEQUENCES, MAX_SEQUENCES)
        size = position_bytes(config, session.dtype)
        super().__init__(session, Rows.fitting(cache_bytes, size, count, session.context_length))
        self._cache = RowCache(config, session.dtype, session.device)

    @torch.inference_mode()
    def _copy(self, source: int, row: int, length: int) -> None:
        self._reserve(row + 1, 0)
        self._cache.copy(source, row, length)

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        self._reserve(max(p.sequence for p in pieces) + 1, max(map(self._end, pieces)))
        # Single tokens first, so that they are neighbours.
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index].tokens) > 1)
        found = self._forward(self._pass([pieces[index] for index in order]))
        parts: list[NDArray[np.float32] | None] = [None] * len(pieces)
        start = 0
        for index in order:
            piece = pieces[index]
            count = wanted_rows(piece)
            if count:
                rows = found[start : start + count]
                parts[index] = rows if piece.want is Want.EVERY else rows[-1]
            start += count
        return parts

    def _pass(self, pieces: Sequence[Piece]) -> Pass:
        tokens: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        prompts: list[Prompt] = []
        singles = 0
        for piece in pieces:
            first, held, count = len(tokens), self.length(piece.sequence), len(piece.tokens)
            tokens += piece.tokens
            rows += [piece.sequence] * count
            positions += range(held, held + count)
            wanted += range(first + count - wanted_rows(piece), first + count)
            if count == 1:
                singles += 1
            else:
                prompts.append(Prompt(slice(first, first + count), piece.sequence, held + count))
        visible = max(positions[:singles], default=0) + 1
        return Pass.of(
            (tokens, rows, positions, wanted),
            singles,
            visible,
            tuple(prompts),
            self._session.device,
        )

    def _forward(self, work: Pass) -> NDArray[np.float32]:
        """-> logits [wanted, vocabulary]."""
        session = self._session
        ops = (
            DeviceOps(session.weights, work, self._cache)
            if isinstance(session, AcceleratorSession)
            else ReferenceOps(session.model, work, self._cache)
        )
        logits: NDArray[np.float32] = session.decoder.forward(ops)[0].float().cpu().numpy()
        return logits

    def _reserve(self, rows: int, length: int) -> None:
        """Rows and positions grow by doubling."""
        cache = self._cache
        wanted = cache.rows
        if rows > wanted:
            wanted = grown_length(wanted, rows, 1, self._rows)
        room = cache.room
        if length > room:
            room = grown_length(room, length, FIRST_ROOM, self._most)
        cache.grow(wanted, room)


def wanted_rows(piece: Piece) -> int:
    return {Want.NONE: 0, Want.LAST: 1, Want.EVERY: len(piece.tokens)}[piece.want]


def position_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Of keys and values of one position, over all layers."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize


def free_bytes(session: AcceleratorSession | TorchSession) -> int:
    """What the session's device has free; UNTOLD_BYTES where it does not tell."""
    device = torch.device(session.device)
    if device.type == "cpu":
        return free_memory_bytes()
    tell = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    free: int = tell(device)[0] if tell else UNTOLD_BYTES
    return free
