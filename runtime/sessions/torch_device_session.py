"""A checkpoint on any device that torch knows: packed weights, a cache in place, CUDA graphs.

The reference (torch_reference.py) keeps to the order of the models' published code; this session
keeps weights packed and shapes fixed, so that a step is a fixed list of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Attention, Linear, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.families.rope import Rope
from dsconv.convert.forward.torch_ops import (
    KeyValueCache,
    TorchOps,
    load_parameter,
    round_tokens,
    split_heads,
)
from dsconv.convert.forward.torch_ops import rotate as rotate_heads

from .packed_linear import Matrix, load_matrix
from .session import refuse_unknown_tokens

PREFILL_CHUNK = 512
FIRST_CAPACITY = 512
WARM_UP_STEPS = 3  # torch asks for some before a capture


class StaticCache:
    """Keys and values [1, kv_heads, capacity, head_dim] per layer, written in place."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        self._config = checkpoint.decoder.config
        self._dtype, self._device = dtype, device
        self.capacity = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def reserve(self, length: int) -> bool:
        """Make room -> whether the tensors moved."""
        if length <= self.capacity:
            return False
        wanted = max(FIRST_CAPACITY, 2 * self.capacity, length)
        wanted = max(length, min(wanted, self._config.max_position_embeddings))
        self.keys, self.values = self._grown(self.keys, wanted), self._grown(self.values, wanted)
        self.capacity = wanted
        return True

    def _grown(self, old: list[torch.Tensor], capacity: int) -> list[torch.Tensor]:
        c = self._config
        shape = (1, c.num_key_value_heads, capacity, c.head_dim)
        grown = [
            torch.zeros(shape, dtype=self._dtype, device=self._device)
            for _ in range(c.num_hidden_layers)
        ]
        for new, tensor in zip(grown, old, strict=False):
            new[:, :, : tensor.shape[2]] = tensor
        return grown


@dataclass(frozen=True)
class DeviceWeights:
    """On the device: vectors by parameter, matrices by module; what the network's ropes turn by."""

    vectors: Mapping[str, torch.Tensor]
    matrices: Mapping[str, Matrix]
    frequencies: Mapping[Rope, torch.Tensor]
    rounds_inputs: Callable[[str], bool]

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> DeviceWeights:
        vectors = {
            name: load_parameter(checkpoint, name, dtype, device)
            for name, parameter in checkpoint.parameters.items()
            if parameter.role is Role.VECTOR
        }
        matrices = _load_matrices(checkpoint, dtype, device)
        rope = checkpoint.decoder.config.rope
        frequencies = {rope: torch.from_numpy(rope.frequencies()).to(device)}
        return cls(vectors, matrices, frequencies, checkpoint.rounds_inputs)


class StaticOps(TorchOps):
    """One pass over `tokens` at `positions` (both tensors [length]); nothing depends on a value.

    visible: cache positions that are looked at; what lies after a token is masked.
    """

    def __init__(
        self,
        weights: DeviceWeights,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: StaticCache,
        visible: int,
    ) -> None:
        vectors, rounds_inputs = weights.vectors, weights.rounds_inputs
        super().__init__(vectors.__getitem__, tokens, KeyValueCache(), rounds_inputs)
        self._on_device = weights
        self._positions, self._static, self._visible = positions, cache, visible
        columns = torch.arange(visible, device=positions.device)
        self._mask = columns[None] <= positions[:, None]  # [length, visible]

    def embedding(self, table: Table) -> torch.Tensor:
        return self._on_device.matrices[table.name].rows(self._tokens)[None]

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        return device_linears(self._on_device, x, group)

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        return self._on_device.matrices[linear.name].product(x)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        length, layer = query.shape[1], attention.layer
        cosine, sine = self._rotation(attention.rope, query)
        q = rotate_heads(split_heads(query, attention.heads), cosine, sine)
        k = rotate_heads(split_heads(key, attention.kv_heads), cosine, sine)
        keys, values = self._static.keys[layer], self._static.values[layer]
        keys.index_copy_(2, self._positions, k)
        values.index_copy_(2, self._positions, split_heads(value, attention.kv_heads))
        attended = grouped_attention(
            q, keys[:, :, : self._visible], values[:, :, : self._visible], self._mask
        )
        return attended.transpose(1, 2).reshape(1, length, -1)

    def _rotation(self, rope: Rope, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if rope not in self._tables:
            angles = self._positions[:, None].float() * self._on_device.frequencies[rope]
            angles = torch.cat((angles, angles), dim=-1)
            self._tables[rope] = (
                (angles.cos() * rope.attention_factor).to(like.dtype),
                (angles.sin() * rope.attention_factor).to(like.dtype),
            )
        return self._tables[rope]


def device_linears(
    weights: DeviceWeights, x: torch.Tensor, group: Sequence[Linear]
) -> list[torch.Tensor]:
    """The products of one input with matrices on the device."""
    found = []
    for linear in group:
        rounds = weights.rounds_inputs(f"{linear.name}.weight")
        product = weights.matrices[linear.name].product(round_tokens(x) if rounds else x)
        bias = weights.vectors[f"{linear.name}.bias"] if linear.bias else None
        found.append(product if bias is None else product + bias)
    return found


def grouped_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Query [1, heads, length, head_dim] over keys and values [1, kv_heads, visible, head_dim].

    For one token the heads of a group are the rows of one product, so that every key is read once;
    torch's fused kernels repeat keys when they are given a mask.
    """
    heads, length, width = query.shape[1:]
    kv_heads = keys.shape[1]
    if length > 1:
        attended: torch.Tensor = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, enable_gqa=heads != kv_heads
        )
        return attended
    grouped = query.reshape(1, kv_heads, heads // kv_heads, width)
    scores = (grouped @ keys.transpose(2, 3)).float() * width**-0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype)
    result: torch.Tensor = (weights @ values).reshape(1, heads, 1, width)
    return result


class AcceleratorSession:
    """One sequence on a device. float32 on the CPU, bfloat16 elsewhere.

    decoder, weights, device, dtype: what a batch over the same weights needs
    (runtime/batches/torch_device.py).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        threads: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        kind = torch.device(device).type
        self._device = self.device = device
        self._dtype = self.dtype = dtype or (torch.float32 if kind == "cpu" else torch.bfloat16)
        self._decoder = self.decoder = checkpoint.decoder
        self._weights = self.weights = DeviceWeights.load(checkpoint, self._dtype, device)
        self._cache = StaticCache(checkpoint, self._dtype, device)
        self._position = 0
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._graph: Any = None
        self._graph_logits: torch.Tensor | None = None
        self._captures = kind == "cuda"

    @property
    def vocabulary(self) -> int:
        return self._decoder.config.vocab_size

    @property
    def context_length(self) -> int:
        return self._decoder.config.max_position_embeddings

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._position = 0

    def truncate(self, length: int) -> None:
        """What lies after is masked, and written over."""
        self._position = min(self._position, length)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        last = np.empty(0, np.float32)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            last = _to_numpy(self._append(tokens[start : start + PREFILL_CHUNK])[-1])
        return last

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        starts = range(0, len(tokens), PREFILL_CHUNK)
        parts = [_to_numpy(self._append(tokens[at : at + PREFILL_CHUNK])) for at in starts]
        return np.concatenate(parts)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self.extend(tokens)

    @torch.inference_mode()
    def decode(self, token: int) -> NDArray[np.float32]:
        refuse_unknown_tokens((token,), self.vocabulary)
        self._reserve(self._position + 1)
        self._token.fill_(token)
        self._place.fill_(self._position)
        self._position += 1
        if not self._captures:
            return _to_numpy(self._step()[0])
        if self._graph is None:
            self._capture()
        self._graph.replay()
        assert self._graph_logits is not None
        return _to_numpy(self._graph_logits[0])

    @torch.inference_mode()
    def _append(self, tokens: Sequence[int]) -> torch.Tensor:
        """-> logits [tokens, vocabulary]."""
        refuse_unknown_tokens(tokens, self.vocabulary)
        end = self._position + len(tokens)
        self._reserve(end)
        ids = torch.tensor(list(tokens), dtype=torch.int64, device=self._device)
        positions = torch.arange(self._position, end, device=self._device)
        self._position = end
        return self._forward(ids, positions, end)

    def _reserve(self, length: int) -> None:
        """What was captured uses the cache where it was: it goes when the cache moves."""
        if self._cache.reserve(length):
            self._graph = self._graph_logits = None

    def _step(self) -> torch.Tensor:
        """One token, read from and written to tensors that stay where they are."""
        return self._forward(self._token, self._place, self._cache.capacity)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, visible: int) -> torch.Tensor:
        ops = StaticOps(self._weights, ids, positions, self._cache, visible)
        return self._decoder.forward(ops)[0]

    def _capture(self) -> None:
        """Record the step once; a replay launches its kernels without Python.

        The steps before the capture write the same keys at the same place as the replay will.
        A capture records a stream of the current device, which is not this one unless made so.
        """
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._graph_logits = self._step()


def _load_matrices(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> dict[str, Matrix]:
    """Every matrix by its module's name; a tied head has its own, for the layout of the kernel."""
    decoder = checkpoint.decoder
    matrices = {}
    for name, parameter in checkpoint.parameters.items():
        if parameter.role is Role.VECTOR:
            continue
        module = name.removesuffix(".weight")
        gathers = parameter.role is Role.EMBEDDING
        matrices[module] = load_matrix(checkpoint, name, dtype, device, gathers)
    head, table = decoder.head_linear.name, decoder.table.name
    if head not in matrices:  # tied: codes are read once more only where the layouts differ
        packed = checkpoint.scheme(f"{table}.weight") is not None
        again = load_matrix(checkpoint, f"{table}.weight", dtype, device) if packed else None
        matrices[head] = again or matrices[table]
    return matrices


def _to_numpy(x: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = x.float().cpu().numpy()
    return found
