"""One pass over tokens of many sequences in torch: all of them rows of every product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from dsconv.convert.families.base import Attention, DecoderConfig, Linear, Table
from dsconv.convert.families.rope import Rope
from dsconv.convert.forward.torch_ops import (
    KeyValueCache,
    TorchModel,
    TorchOps,
    rotate,
    split_heads,
)
from dsconv.runtime.sessions.torch_device_session import DeviceWeights, device_linears

Lists = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Prompt:
    """A piece of several tokens: its tokens of the pass, its sequence's row, the row's length
    after it."""

    tokens: slice
    row: int
    end: int


@dataclass(frozen=True)
class Pass:
    """Tokens with the row and position of each; those whose logits are wanted.

    singles: so many tokens at the start are the only ones of their sequence. visible: positions
    that the furthest of those sees.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor
    singles: int
    visible: int
    prompts: tuple[Prompt, ...]
    single_rows: slice | torch.Tensor

    @classmethod
    def of(
        cls, lists: Lists, singles: int, visible: int, prompts: tuple[Prompt, ...], device: str
    ) -> Pass:
        """lists: tokens, rows, positions, wanted."""
        tokens, in_rows, positions, wanted = (
            torch.tensor(list(each), dtype=torch.int64, device=device) for each in lists
        )
        rows = list(lists[1][:singles])
        first = rows[0] if rows else 0
        # Neighbours are seen in place; others are copied.
        in_place = rows == list(range(first, first + singles))
        chosen = slice(first, first + singles) if in_place else in_rows[:singles]
        return cls(tokens, in_rows, positions, wanted, singles, visible, prompts, chosen)


class RowCache:
    """Rotated keys and values: per layer [rows, kv_heads, room, head_dim]."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: str) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self.rows = self.room = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._frequencies: dict[Rope, torch.Tensor] = {}

    def frequencies(self, rope: Rope) -> torch.Tensor:
        if rope not in self._frequencies:
            self._frequencies[rope] = torch.from_numpy(rope.frequencies()).to(self._device)
        return self._frequencies[rope]

    def grow(self, rows: int, room: int) -> None:
        if (rows, room) == (self.rows, self.room):
            return
        shape = (rows, self._config.num_key_value_heads, room, self._config.head_dim)
        for tensors in (self.keys, self.values):
            old: list[torch.Tensor | None] = [*tensors]
            old = old or [None for _ in range(self._config.num_hidden_layers)]
            tensors[:] = [self._grown(tensor, shape) for tensor in old]
        self.rows, self.room = rows, room

    def _grown(self, old: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
        # Zeros: what the mask hides is multiplied by 0, which NaN would survive.
        new = torch.zeros(shape, dtype=self._dtype, device=self._device)
        if old is not None:
            new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def copy(self, source: int, row: int, length: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[row, :, :length] = tensor[source, :, :length]


class RowOps(TorchOps):
    """What differs from one sequence: rotation, attention, and for which tokens the head is."""

    def __init__(
        self,
        weights: Callable[[str], torch.Tensor],
        work: Pass,
        cache: RowCache,
        rounds_inputs: Callable[[str], bool],
    ) -> None:
        super().__init__(weights, work.tokens, KeyValueCache(), rounds_inputs)
        self._pass, self._in_rows = work, cache
        columns = torch.arange(work.visible, device=work.tokens.device)
        seen = columns[None] <= work.positions[: work.singles, None]
        self._seen = seen[:, None, None]  # [singles, 1, 1, visible]

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        work, layer = self._pass, attention.layer
        cosine, sine = self._rotation(attention.rope, query)
        q = rotate(split_heads(query, attention.heads), cosine, sine)
        k = rotate(split_heads(key, attention.kv_heads), cosine, sine)
        v = split_heads(value, attention.kv_heads)
        keys, values = self._in_rows.keys[layer], self._in_rows.values[layer]
        keys[work.rows, :, work.positions] = k[0].transpose(0, 1)
        values[work.rows, :, work.positions] = v[0].transpose(0, 1)
        parts = []
        if work.singles:
            rows = work.single_rows
            singles = q[0, :, : work.singles].transpose(0, 1)
            seen_keys, seen_values = (x[rows, :, : work.visible] for x in (keys, values))
            parts.append(attend_rows(singles, seen_keys, seen_values, self._seen))
        for prompt in work.prompts:
            parts.append(self._attend_prompt(q, keys, values, prompt))
        return torch.cat(parts)[None]

    def _attend_prompt(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prompt: Prompt
    ) -> torch.Tensor:
        """-> [tokens, heads * head_dim]."""
        row = slice(prompt.row, prompt.row + 1)
        columns = torch.arange(prompt.end, device=q.device)
        attended = functional.scaled_dot_product_attention(
            q[:, :, prompt.tokens],
            keys[row, :, : prompt.end],
            values[row, :, : prompt.end],
            attn_mask=columns[None] <= self._pass.positions[prompt.tokens, None],
            enable_gqa=q.shape[1] != keys.shape[1],
        )
        return attended[0].transpose(0, 1).flatten(1)

    def _rotation(self, rope: Rope, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if rope not in self._tables:
            angles = self._pass.positions[:, None].float() * self._in_rows.frequencies(rope)
            angles = torch.cat((angles, angles), dim=-1)
            self._tables[rope] = (
                (angles.cos() * rope.attention_factor).to(like.dtype),
                (angles.sin() * rope.attention_factor).to(like.dtype),
            )
        return self._tables[rope]

    def _chosen(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self._pass.wanted]


class ReferenceOps(RowOps):
    """Over weights that are dequantized in memory."""

    def __init__(self, model: TorchModel, work: Pass, cache: RowCache) -> None:
        super().__init__(model.weights, work, cache, model.rounds_inputs)

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        return super().head(self._chosen(x), linear, tied_to)


class DeviceOps(RowOps):
    """Over packed weights on a device."""

    def __init__(self, weights: DeviceWeights, work: Pass, cache: RowCache) -> None:
        super().__init__(weights.vectors.__getitem__, work, cache, weights.rounds_inputs)
        self._on_device = weights

    def embedding(self, table: Table) -> torch.Tensor:
        return self._on_device.matrices[table.name].rows(self._tokens)[None]

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        return device_linears(self._on_device, x, group)

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        chosen = self._chosen(x)
        if not chosen.shape[1]:  # kernels of vendors do not all take no rows
            return chosen.new_empty((1, 0, linear.outputs))
        return self._on_device.matrices[linear.name].product(chosen)


def attend_rows(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """A token of each row: query [rows, heads, head_dim] over keys and values [rows, kv_heads,
    visible, head_dim] -> [rows, heads * head_dim].

    The heads of a group are the rows of one product, so that every key is read once.
    """
    rows, heads, width = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, width)
    scores = (grouped @ keys.transpose(2, 3)).float() * width**-0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(values.dtype)
    mixed: torch.Tensor = weights @ values
    return mixed.reshape(rows, heads * width)
