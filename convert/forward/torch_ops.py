"""The torch interpreter: the reference forward, in float32 or bfloat16, on any torch device.

The order of operations is that of the models' published code, so that results agree to the last
bits: large query and key biases amplify every other choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Attention, Decoder, Linear, Norm, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.families.rope import Rope
from dsconv.quant.int8_rows import MAX_CODE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK_WEIGHTS = 1 << 24  # weights dequantized at a time while loading
SMALLEST = torch.finfo(torch.float32).smallest_normal

Predicate = Callable[[str], bool]  # of a parameter's name


def forward_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (about four times as fast)."""
    has_bfloat16: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return torch.bfloat16 if has_bfloat16() else torch.float32


@dataclass
class KeyValueCache:
    """Rotated keys and values so far: per layer [1, kv_heads, length, head_dim]."""

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    length: int = 0

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.keys:
            key = torch.cat((self.keys[layer], key), dim=2)
            value = torch.cat((self.values[layer], value), dim=2)
        self.keys[layer], self.values[layer] = key, value
        return key, value

    def truncate(self, length: int) -> None:
        """Keep the first `length` positions."""
        for tensors in (self.keys, self.values):
            tensors.update({layer: tensor[:, :, :length] for layer, tensor in tensors.items()})
        self.length = min(self.length, length)


class TorchOps:
    """One forward pass over `tokens` [length], after the `cache.length` positions already seen.

    rounds_inputs: of which weights the inputs are rounded to int8, token by token.
    """

    def __init__(
        self,
        weights: Callable[[str], torch.Tensor],
        tokens: torch.Tensor,
        cache: KeyValueCache,
        rounds_inputs: Predicate = lambda name: False,
    ) -> None:
        self._weights = weights
        self._rounds_inputs = rounds_inputs
        self._tokens = tokens
        self._cache = cache
        self._tables: dict[Rope, tuple[torch.Tensor, torch.Tensor]] = {}

    def embedding(self, table: Table) -> torch.Tensor:
        return functional.embedding(self._tokens, self._weights(f"{table.name}.weight"))[None]

    def rms_norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The mean square in float32, as published; the gain in the model's dtype."""
        parts = x.view(*x.shape[:-1], norm.heads, norm.size) if norm.heads > 1 else x
        wide = parts.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.epsilon)
        return (self._weights(f"{norm.name}.weight") * wide.to(x.dtype)).view(x.shape)

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        names = [f"{linear.name}.weight" for linear in group]
        rounded = round_tokens(x) if any(map(self._rounds_inputs, names)) else x
        return [
            functional.linear(
                rounded if self._rounds_inputs(name) else x,
                self._weights(name),
                self._weights(f"{linear.name}.bias") if linear.bias else None,
            )
            for name, linear in zip(names, group, strict=True)
        ]

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        length = query.shape[1]
        cosine, sine = self._rotation(attention.rope, query)
        q = rotate(split_heads(query, attention.heads), cosine, sine)
        k = rotate(split_heads(key, attention.kv_heads), cosine, sine)
        k, v = self._cache.append(attention.layer, k, split_heads(value, attention.kv_heads))
        # SDPA's own causal flag aligns to the upper left: right only while the cache is empty.
        past = k.shape[2] - length
        mask = None
        if past and length > 1:
            mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(past)
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=past == 0 and length > 1,
            scale=attention.head_dim**-0.5,
            enable_gqa=attention.heads != attention.kv_heads,
        )
        return attended.transpose(1, 2).reshape(1, length, -1)

    def silu_multiply(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return functional.silu(gate) * up

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        name = linear.name if tied_to is None else tied_to.name
        return functional.linear(x, self._weights(f"{name}.weight"))

    def _rotation(self, rope: Rope, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """-> cosine, sine [length, head_dim] of the positions of this pass."""
        if rope not in self._tables:
            start = self._cache.length
            positions = torch.arange(start, start + like.shape[1], device=like.device)
            frequencies = torch.from_numpy(rope.frequencies()).to(like.device)
            angles = positions[:, None].float() * frequencies
            angles = torch.cat((angles, angles), dim=-1)
            self._tables[rope] = (
                (angles.cos() * rope.attention_factor).to(like.dtype),
                (angles.sin() * rope.attention_factor).to(like.dtype),
            )
        return self._tables[rope]


def round_tokens(x: torch.Tensor) -> torch.Tensor:
    """What dynamic int8 makes of activations [..., features]: `simulate_rows` on any device."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / MAX_CODE).clamp(min=SMALLEST)
    return ((wide / scale).round_().clamp_(-MAX_CODE, MAX_CODE) * scale).to(x.dtype)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[1, length, heads * head_dim] -> [1, heads, length, head_dim]."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class TorchModel:
    """A checkpoint's weights in memory (dequantized, by parameter) and the forward over them.

    Where the checkpoint has activations rounded to int8, so are they here.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: Callable[[str], torch.Tensor],
        rounds_inputs: Predicate,
        device: str,
    ) -> None:
        self._decoder = decoder
        self._weights = self.weights = weights
        self._rounds_inputs = self.rounds_inputs = rounds_inputs
        self._device = device

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, dtype: str = "float32", device: str = "cpu"
    ) -> TorchModel:
        """Read every weight of `checkpoint` into memory as `dtype`."""
        weights = {
            name: load_parameter(checkpoint, name, DTYPES[dtype], device)
            for name in checkpoint.parameters
        }
        return cls(checkpoint.decoder, weights.__getitem__, checkpoint.rounds_inputs, device)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: KeyValueCache | None = None) -> torch.Tensor:
        """-> logits [tokens, vocabulary] of `tokens`, which extend `cache`."""
        cache = KeyValueCache() if cache is None else cache
        ids = torch.tensor(list(tokens), dtype=torch.int64, device=self._device)
        ops = TorchOps(self._weights, ids, cache, self._rounds_inputs)
        logits = self._decoder.forward(ops)
        cache.length += len(tokens)
        return logits[0]


def load_parameter(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, device: str = "cpu"
) -> torch.Tensor:
    """Read a parameter in row chunks, so that the float32 form is never held whole beside it."""
    parameter = checkpoint.parameters[name]
    if parameter.role is Role.VECTOR:
        return torch.from_numpy(checkpoint.rows(name).copy()).to(dtype=dtype, device=device)
    rows, columns = parameter.shape
    weight = torch.empty(rows, columns, dtype=dtype, device=device)
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        weight[start:stop] = torch.from_numpy(checkpoint.rows(name, start, stop))
    return weight
