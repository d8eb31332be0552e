"""Dialect `contrib`: ONNX Runtime's own operators, the fastest on CPU and CUDA.

Quantized matrices are read in place. Results of fused matrices are split only where somebody needs
the parts. With precision float16 everything between the embedding and the logits is float16: CUDA
has GroupQueryAttention in that type only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dsconv.convert.families.base import Attention, Decoder, Linear, Norm, Table
from dsconv.convert.families.rope import Rope
from dsconv.convert.formats.onnx.graph import FLOAT, FLOAT16, INT32, MICROSOFT, Value
from dsconv.errors import UnsupportedError

from .attention import attention24
from .dialect import Dialect, cast
from .nbits import block_scales, blocks_of, matmul_nbits, packed_codes, packed_zeros


@dataclass(eq=False)
class Part:
    """Output `index` of a fused linear map whose outputs have these sizes."""

    whole: Value
    sizes: tuple[int, ...]
    index: int


@dataclass(eq=False)
class Sum:
    """x + y that the next norm may absorb."""

    x: Value
    y: Value
    value: Value | None = None


Lazy = Value | Part | Sum


class Contrib(Dialect):
    name = "contrib"
    opsets: ClassVar[dict[str, int]] = {"": 21, MICROSOFT: 1}
    ir_version = 10
    shares_cache_buffer = True
    needs_position_ids = False
    precisions = ("float32", "float16")

    def build(self) -> None:
        logits = self._value(self.decoder.forward(self))
        self.declare_outputs(cast(self.graph, logits, FLOAT) if self.options.half else logits)

    @property
    def _element(self) -> str:
        return "F16" if self.options.half else "F32"

    def _floats(self, names: list[str]) -> Value:
        return self.weights.floats(names, self._element)

    # --- laziness ---------------------------------------------------------------------------

    def _value(self, lazy: Lazy) -> Value:
        """Emit what is still pending."""
        if isinstance(lazy, Part):
            return self._split(lazy.whole, lazy.sizes)[lazy.index]
        if isinstance(lazy, Sum):
            if lazy.value is None:
                lazy.value = self.graph.node("Add", [lazy.x, lazy.y])
            return lazy.value
        return lazy

    def _split(self, whole: Value, sizes: tuple[int, ...]) -> list[Value]:
        users = [usage.node for usage in whole.uses() if usage.node.op_type == "Split"]
        if users:
            return list(users[0].outputs)
        return self.graph.nodes("Split", [whole, self.graph.integers(*sizes)], len(sizes), axis=-1)

    # --- the vocabulary -----------------------------------------------------------------------

    def embedding(self, table: Table) -> Lazy:
        name = f"{table.name}.weight"
        scheme = self.weights.scheme(name)
        if self.rewrites_embedding(name):
            return self.graph.cast_between(self.half_embedding(name), "F16", self._element)
        if scheme is None:  # gather in the stored dtype, so that the table stays mapped
            rows = self.weights.range([name], (table.vocabulary, table.hidden))
            gathered = self.graph.node("Gather", [rows, self.ids], axis=0)
            stored = self.weights.stored(name).dtype
            return self.graph.cast_between(gathered, stored, self._element)
        block, blocks = blocks_of(scheme, table.hidden)
        row_bytes = table.hidden * scheme.bits // 8
        codes = packed_codes(self, [name], (table.vocabulary, row_bytes), row_bytes)
        scales = block_scales(self, [name], table.vocabulary, blocks, self._element)
        inputs = [codes, self.ids, scales]
        if not scheme.symmetric:
            inputs.append(packed_zeros(self, [name], table.vocabulary, blocks, scheme))
        return self.graph.node(
            "GatherBlockQuantized",
            inputs,
            MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=block,
            bits=scheme.bits,
        )

    def rms_norm(self, x: Lazy, norm: Norm) -> Lazy:
        graph = self.graph
        gain = self._floats([f"{norm.name}.weight"])
        if isinstance(x, Sum) and x.value is None:
            outputs = graph.nodes(
                "SkipSimplifiedLayerNormalization",
                [x.x, x.y, gain],
                4,
                MICROSOFT,
                epsilon=norm.epsilon,
            )
            outputs[1].name = outputs[2].name = ""  # statistics, used in training only
            x.value = outputs[3]
            return outputs[0]
        value = self._value(x)
        if norm.heads > 1:
            value = graph.node("Reshape", [value, graph.integers(0, 0, norm.heads, norm.size)])
        normed = graph.node(  # lives in the default domain, under com.microsoft it is unknown
            "SimplifiedLayerNormalization",
            [value, gain],
            axis=-1,
            epsilon=norm.epsilon,
            stash_type=1,
        )
        if norm.heads > 1:
            normed = graph.node("Reshape", [normed, graph.integers(0, 0, norm.heads * norm.size)])
        return normed

    def linears(self, x: Lazy, group: Sequence[Linear]) -> list[Lazy]:
        value = self._value(x)
        if len(group) > 1 and self._fusable(group):
            whole = self._linear(value, list(group))
            sizes = tuple(linear.outputs for linear in group)
            return [Part(whole, sizes, index) for index in range(len(group))]
        return [self._linear(value, [linear]) for linear in group]

    def attention(self, query: Lazy, key: Lazy, value: Lazy, attention: Attention) -> Lazy:
        packed = _packed(query, key, value)
        inputs: list[Value | None] = [packed, None, None]
        if packed is None:
            inputs = [self._value(query), self._value(key), self._value(value)]
        past = self.past[attention.layer]
        output, present_key, present_value = self.graph.nodes(
            "GroupQueryAttention",
            [*inputs, *past, *self._sequence_lengths(), *self._rotary_tables(attention.rope)],
            3,
            MICROSOFT,
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            scale=self.attention_scale(attention),
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=-1,
        )
        self.present[attention.layer] = (present_key, present_value)
        return output

    def silu_multiply(self, gate: Lazy, up: Lazy) -> Lazy:
        return self.sigmoid_multiply(self._value(gate), self._value(up))

    def add(self, x: Lazy, y: Lazy) -> Lazy:
        return Sum(self._value(x), self._value(y))

    def head(self, x: Lazy, linear: Linear, tied_to: Table | None) -> Value:
        name = linear.name if tied_to is None else tied_to.name
        stored = Linear(name, linear.outputs, linear.inputs)
        return self._linear(self._value(x), [stored])

    # --- weights --------------------------------------------------------------------------------

    def _fusable(self, group: Sequence[Linear]) -> bool:
        """May one matrix stand for the group? The bytes must lie side by side, all the same way."""
        names = [f"{linear.name}.weight" for linear in group]
        schemes = {self.weights.scheme(name) for name in names}
        biases = [f"{linear.name}.bias" for linear in group if linear.bias]
        if len(schemes) > 1 or len(biases) not in (0, len(group)):
            return False
        if biases and not self.weights.adjacent(biases):
            return False
        if schemes == {None}:
            return self.weights.adjacent(names)
        modules = [linear.name for linear in group]
        return all(
            self.weights.adjacent([f"{module}.{kind}" for module in modules])
            for kind in ("weight_packed", "weight_scale")
        )

    def _linear(self, x: Value, group: list[Linear]) -> Value:
        """One matrix product for linears that lie side by side."""
        names = [f"{linear.name}.weight" for linear in group]
        bias = None
        if group[0].bias:
            bias = self._floats([f"{linear.name}.bias" for linear in group])
        scheme = self.weights.scheme(names[0])
        if scheme is not None:
            return matmul_nbits(self, x, group, scheme, bias, self._element)
        product = self._float_product(x, self._floats(names))
        return product if bias is None else self.graph.node("Add", [product, bias])

    def _float_product(self, x: Value, matrix: Value) -> Value:
        """x Wᵀ; FusedMatMul reads W as it lies, a Transpose is a copy when the graph is loaded."""
        if self.options.fused_products:
            return self.graph.node("FusedMatMul", [x, matrix], MICROSOFT, transB=1)
        return self.graph.node("MatMul", [x, self.graph.node("Transpose", [matrix], perm=[1, 0])])

    # --- once per graph ---------------------------------------------------------------------------

    def _sequence_lengths(self) -> tuple[Value, Value]:
        """Last valid position per row, and the total length: what GroupQueryAttention asks for."""

        def build() -> tuple[Value, Value]:
            graph = self.graph
            valid = graph.node("ReduceSum", [self.mask, graph.integers(1)], keepdims=0)
            last = graph.node("Sub", [valid, graph.integers(1)])
            one = graph.constant(np.array(1, np.int64))
            width = graph.node("Gather", [graph.node("Shape", [self.mask]), one], axis=0)
            return cast(graph, last, INT32), cast(graph, width, INT32)

        return self.once("sequence_lengths", build)

    def _rotary_tables(self, rope: Rope) -> tuple[Value, Value]:
        """cosine, sine [context, head_dim / 2], computed when the graph is loaded."""

        def build() -> tuple[Value, Value]:
            graph = self.graph
            bounds = (np.float32(0), np.float32(self.options.context_length), np.float32(1))
            positions = graph.node("Range", [graph.constant(bound) for bound in bounds])
            column = graph.node("Unsqueeze", [positions, graph.integers(1)])
            waves = self.cosine_and_sine(rope, column)
            if not self.options.half:
                return waves
            return cast(graph, waves[0], FLOAT16), cast(graph, waves[1], FLOAT16)

        return self.once("rotary_tables", build)


class ContribPlainAttention(Contrib):
    """For head sizes that GroupQueryAttention refuses: the standard Attention in its place."""

    opsets: ClassVar[dict[str, int]] = {"": 24, MICROSOFT: 1}
    ir_version = 11
    shares_cache_buffer = False
    needs_position_ids = True

    def attention(self, query: Lazy, key: Lazy, value: Lazy, attention: Attention) -> Lazy:
        if self.options.half:
            raise UnsupportedError(
                f"heads of {attention.head_dim}: GroupQueryAttention takes multiples of 16, and "
                "its stand-in is not written in float16",
                "export with --target cpu or webgpu, which compute in float32",
            )
        q, k, v = (self._value(lazy) for lazy in (query, key, value))
        output, *present = attention24(self, q, k, v, attention)
        self.present[attention.layer] = (present[0], present[1])
        return output


def contrib_for(decoder: Decoder) -> type[Contrib]:
    """GroupQueryAttention rotates heads whose size is a multiple of 16 only."""
    return Contrib if decoder.config.head_dim % 16 == 0 else ContribPlainAttention


def _packed(query: Lazy, key: Lazy, value: Lazy) -> Value | None:
    """The fused matrix's output when the three are its parts in order."""
    parts = [query, key, value]
    if all(
        isinstance(part, Part) and part.index == index and len(part.sizes) == 3
        for index, part in enumerate(parts)
    ):
        wholes = {id(part.whole) for part in parts if isinstance(part, Part)}
        if len(wholes) == 1 and isinstance(query, Part):
            return query.whole
    return None
