"""The interpreter that writes many texts at once: one step gives every slot its next token.

A value is a tensor [slots, 1, features]. All slots are at the same step but each at a position of
its own in its document, where its key and value go into a cache of fixed size: a new document
writes over the old one from position 0, and a slot sees no position beyond its own.

Matrices come in pieces of rows, read when a thread needs them and dropped after use, or kept where
memory allows. The pieces do not depend on the number of threads, so neither do the results.

The batches that serve checkpoints (runtime/batches/torch_device.py) are no substitute: they hold
all weights in memory, where this one writes with models larger than that, and their sums depend on
the threads of torch, where calibration has to give the same bytes for any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as functional

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Attention, DecoderConfig, Linear, Norm, Table
from dsconv.convert.families.rope import Rope
from dsconv.errors import InputError

from .torch_ops import KeyValueCache, TorchOps
from .workers import Workers

PIECE_WEIGHTS = 1 << 20  # of matrices that share an input, multiplied by one thread
ATTENTION_SLOTS = 4  # attended by one thread


class WeightPieces:
    """A checkpoint's weights as tensors of one dtype; with `hold`, each is read once and kept."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, hold: bool) -> None:
        self._checkpoint = checkpoint
        self.dtype = dtype
        self._hold = hold
        self._pieces: dict[tuple[str, int], torch.Tensor] = {}
        self._checked: set[tuple[str, int]] = set()
        self._vectors: dict[str, torch.Tensor] = {}

    @property
    def held_bytes(self) -> int:
        """Of the matrices in memory."""
        return sum(piece.nbytes for piece in self._pieces.values())

    def piece(self, group: Sequence[Linear], start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the group's matrices, one below the other."""
        key = (group[0].name, start)
        if key in self._pieces:
            return self._pieces[key]
        parts, first = [], 0
        for linear in group:
            low, high = max(start - first, 0), min(stop - first, linear.outputs)
            if low < high:
                parts.append(self._read(f"{linear.name}.weight", low, high))
            first += linear.outputs
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._hold:
            self._pieces[key] = rows
        return rows

    def bias(self, group: Sequence[Linear]) -> torch.Tensor | None:
        """The biases of the group, zeros for maps without; None when none has one."""
        if not any(linear.bias for linear in group):
            return None
        return torch.cat(
            [
                self.vector(f"{linear.name}.bias")
                if linear.bias
                else torch.zeros(linear.outputs, dtype=self.dtype)
                for linear in group
            ]
        )

    def vector(self, name: str) -> torch.Tensor:
        """A norm's gain or a bias: small, always kept."""
        if name not in self._vectors:
            self._vectors[name] = self._read(name, 0, self._checkpoint.parameters[name].shape[0])
        return self._vectors[name]

    def embeddings(self, table: Table, tokens: Sequence[int]) -> torch.Tensor:
        """-> [tokens, hidden], row by row from the file."""
        return torch.cat([self._read(f"{table.name}.weight", t, t + 1) for t in tokens])

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a parameter.

        Raises:
            InputError: values that are not finite, seen when they are read first.
        """
        rows = self._read_rows(name, start, stop)
        if (name, start) not in self._checked:
            self._checked.add((name, start))
            if not torch.isfinite(rows).all():
                raise InputError(
                    f"tensor {name!r}: values among rows {start} to {stop} are NaN or infinite",
                    "the checkpoint is damaged; download it again",
                )
        return rows

    def _read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if self._checkpoint.scheme(name) is None:
            stored = self._checkpoint.source.rows(name, start, stop)
            if stored.dtype == ml_dtypes.bfloat16:  # which torch does not take from NumPy
                words = np.require(stored.view(np.int16), requirements="W")
                return torch.from_numpy(words).view(torch.bfloat16).to(self.dtype)
        values = np.require(self._checkpoint.rows(name, start, stop), requirements="W")
        return torch.from_numpy(values).to(self.dtype)


class SlotCache:
    """Rotated keys and values: per layer [slots, kv_heads, length, head_dim]."""

    def __init__(self, config: DecoderConfig, slots: int, length: int, dtype: torch.dtype) -> None:
        shape = (slots, config.num_key_value_heads, length, config.head_dim)
        # Zeros: what the mask hides is multiplied by 0, which NaN would survive.
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self._slots = torch.arange(slots)

    @staticmethod
    def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Of one slot, over all layers."""
        width = config.num_key_value_heads * config.head_dim
        return 2 * config.num_hidden_layers * width * dtype.itemsize

    def put(
        self, layer: int, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store key and value [slots, kv_heads, head_dim] at every slot's position."""
        self.keys[layer][self._slots, :, positions] = key
        self.values[layer][self._slots, :, positions] = value


class GeneratingOps:
    """One step: a token for every slot, at every slot's position in its document."""

    def __init__(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        weights: WeightPieces,
        cache: SlotCache,
        workers: Workers,
    ) -> None:
        self._tokens = tokens
        self._positions = torch.tensor(list(positions))
        self._lengths = [position + 1 for position in positions]
        self._seen = torch.arange(max(self._lengths)) <= self._positions[:, None]
        self._weights = weights
        self._cache = cache
        self._workers = workers
        self._plain = TorchOps(weights.vector, self._positions, KeyValueCache())
        self._tables: dict[Rope, tuple[torch.Tensor, torch.Tensor]] = {}

    def embedding(self, table: Table) -> torch.Tensor:
        return self._weights.embeddings(table, self._tokens)[:, None]

    def rms_norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return self._plain.rms_norm(x, norm)

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        bias = self._weights.bias(group)

        @torch.inference_mode()  # which counts for one thread only
        def product(rows: tuple[int, int]) -> torch.Tensor:
            weight = self._weights.piece(group, *rows)
            return functional.linear(x, weight, None if bias is None else bias[slice(*rows)])

        results = torch.cat(list(self._workers.in_order(product, _pieces(group))), dim=-1)
        return list(results.split_with_sizes([linear.outputs for linear in group], dim=-1))

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Query heads that share a key head go together, as if they were positions of one head."""
        slots, kv_heads = len(query), attention.kv_heads
        cosine, sine = self._rotation(attention.rope, query.dtype)
        rotated = _rotate(key.view(slots, kv_heads, -1), cosine, sine)
        self._cache.put(
            attention.layer, self._positions, rotated, value.reshape(slots, kv_heads, -1)
        )
        rotated = _rotate(query.reshape(slots, attention.heads, -1), cosine, sine)
        q = rotated.view(slots, kv_heads, attention.heads // kv_heads, -1)
        keys, values = self._cache.keys[attention.layer], self._cache.values[attention.layer]

        @torch.inference_mode()
        def attend(start: int) -> torch.Tensor:
            part = slice(start, start + ATTENTION_SLOTS)
            length = max(self._lengths[part])
            return functional.scaled_dot_product_attention(
                q[part],
                keys[part, :, :length],
                values[part, :, :length],
                attn_mask=self._seen[part, None, None, :length],
                scale=attention.head_dim**-0.5,
            )

        parts = self._workers.in_order(attend, range(0, slots, ATTENTION_SLOTS))
        return torch.cat(list(parts)).reshape(slots, 1, -1)

    def silu_multiply(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self._plain.silu_multiply(gate, up)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        name = linear.name if tied_to is None else tied_to.name
        return self.linears(x, [Linear(name, linear.outputs, linear.inputs)])[0]

    def _rotation(self, rope: Rope, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """-> cosine, sine [slots, 1, head_dim]."""
        if rope not in self._tables:
            angles = self._positions[:, None].float() * torch.from_numpy(rope.frequencies())
            angles = torch.cat((angles, angles), dim=-1)[:, None]
            self._tables[rope] = (
                (angles.cos() * rope.attention_factor).to(dtype),
                (angles.sin() * rope.attention_factor).to(dtype),
            )
        return self._tables[rope]


def _pieces(group: Sequence[Linear]) -> Iterator[tuple[int, int]]:
    """Row ranges of the group's matrices, one below the other, of nearly equal size."""
    rows = sum(linear.outputs for linear in group)
    count = -(-rows * group[0].inputs // PIECE_WEIGHTS)
    for index in range(count):
        yield index * rows // count, (index + 1) * rows // count


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
