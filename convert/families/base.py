"""What a decoder is, said once, against a small vocabulary of operations.

An interpreter of that vocabulary (`Ops`) turns the description into something: torch tensors, an
ONNX graph, a list of the checkpoint's tensors. Tensor names are known to the families only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from dsconv.convert.files.json_file import ConfigReader

from .rope import Rope

V = TypeVar("V")


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b. `name` is the module's path; W is [outputs, inputs] at `name.weight`."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the last `size` features of every one of `heads` equal parts of the input."""

    name: str
    size: int
    epsilon: float
    heads: int = 1


@dataclass(frozen=True)
class Table:
    """Token embedding [vocabulary, hidden] at `name.weight`."""

    name: str
    vocabulary: int
    hidden: int


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention with rotary positions (applied to queries and keys here)."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope


class Ops(Protocol[V]):
    """The vocabulary. The interpreter knows the token ids and keeps the KV cache."""

    def embedding(self, table: Table) -> V: ...

    def rms_norm(self, x: V, norm: Norm) -> V: ...

    def linears(self, x: V, group: Sequence[Linear]) -> list[V]:
        """Several linear maps of one input; an interpreter may fuse them."""
        ...

    def attention(self, query: V, key: V, value: V, attention: Attention) -> V: ...

    def silu_multiply(self, gate: V, up: V) -> V:
        """silu(gate) * up."""
        ...

    def add(self, x: V, y: V) -> V: ...

    def head(self, x: V, linear: Linear, tied_to: Table | None) -> V:
        """Logits. With `tied_to`, the weights are the embedding's."""
        ...


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder, in Hugging Face's words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: Rope
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class Decoder:
    """A pre-norm decoder with SwiGLU; the families differ in the switches of their config."""

    architecture: ClassVar[str]
    model_type: ClassVar[str]
    layers_name: ClassVar[str] = "model.layers"  # of the list of layers

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config

    @classmethod
    def from_config(cls, reader: ConfigReader) -> Decoder:
        """Read config.json.

        Raises:
            InputError: a key is missing or has a wrong value.
            UnsupportedError: a key asks for behaviour that is not implemented.
        """
        raise NotImplementedError

    @property
    def table(self) -> Table:
        return Table("model.embed_tokens", self.config.vocab_size, self.config.hidden_size)

    @property
    def head_linear(self) -> Linear:
        return Linear("lm_head", self.config.vocab_size, self.config.hidden_size)

    def layer_name(self, index: int) -> str:
        return f"{self.layers_name}.{index}"

    def attention_name(self, index: int) -> str:
        return f"{self.layer_name(index)}.self_attn"

    def forward(self, ops: Ops[V]) -> V:
        """-> logits."""
        x = ops.embedding(self.table)
        for index in range(self.config.num_hidden_layers):
            x = self.layer(ops, index, x)
        return self.head(ops, x)

    def layer(self, ops: Ops[V], index: int, x: V) -> V:
        c, prefix = self.config, self.layer_name(index)
        h = ops.rms_norm(x, self._norm(f"{prefix}.input_layernorm"))
        x = ops.add(x, self._attention(ops, index, h))
        h = ops.rms_norm(x, self._norm(f"{prefix}.post_attention_layernorm"))
        gate, up = ops.linears(
            h,
            [
                Linear(f"{prefix}.mlp.{name}", c.intermediate_size, c.hidden_size, c.mlp_bias)
                for name in ("gate_proj", "up_proj")
            ],
        )
        down = Linear(f"{prefix}.mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias)
        return ops.add(x, ops.linears(ops.silu_multiply(gate, up), [down])[0])

    def head(self, ops: Ops[V], x: V) -> V:
        normed = ops.rms_norm(x, self._norm("model.norm"))
        tied_to = self.table if self.config.tie_word_embeddings else None
        return ops.head(normed, self.head_linear, tied_to)

    def _attention(self, ops: Ops[V], index: int, h: V) -> V:
        c, prefix = self.config, self.attention_name(index)
        width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        query, key, value = ops.linears(
            h,
            [
                Linear(f"{prefix}.{name}", outputs, c.hidden_size, c.qkv_bias)
                for name, outputs in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width))
            ],
        )
        if c.qk_norm:
            eps = c.rms_norm_eps
            query_norm = Norm(f"{prefix}.q_norm", c.head_dim, eps, c.num_attention_heads)
            key_norm = Norm(f"{prefix}.k_norm", c.head_dim, eps, c.num_key_value_heads)
            query, key = ops.rms_norm(query, query_norm), ops.rms_norm(key, key_norm)
        spec = Attention(index, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope)
        attended = ops.attention(query, key, value, spec)
        output = Linear(f"{prefix}.o_proj", c.hidden_size, width, c.output_bias)
        return ops.linears(attended, [output])[0]

    def _norm(self, name: str) -> Norm:
        return Norm(name, self.config.hidden_size, self.config.rms_norm_eps)
