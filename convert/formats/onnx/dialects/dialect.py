"""What all dialects share: the inputs and outputs of a decoder with its KV cache.

With fixed shapes a graph takes `sequence_length` tokens at a time and a cache of `context_length`
positions, which the caller pads and masks; it returns the new keys and values only, so that the
caller writes a few rows instead of moving a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import onnx_ir as ir

from dsconv.convert.families.base import Attention, Decoder
from dsconv.convert.families.rope import Rope
from dsconv.convert.formats.onnx.graph import (
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    Dimension,
    GraphBuilder,
    Value,
)
from dsconv.convert.formats.onnx.weights import GraphWeights

T = TypeVar("T")


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is written for.

    Attributes:
        context_length: positions; with fixed shapes the size of the padded cache.
        accuracy_level: 4 multiplies in int8 (fast), 0 in float32 (exact).
        precision: float16 halves matrices, products and cache.
        sequence_length: tokens of one run, all shapes fixed; None leaves them open.
        rotary_tables: look cosine and sine up instead of computing them.
        packed_embedding: keep a quantized embedding packed; else it is written as float16.
        bfloat16: gather from a bfloat16 embedding as it lies; else it is written as float16.
        explicit_zero_points: write zero points of symmetric codes too.
        fused_products: multiply float matrices by FusedMatMul as they lie (dialect contrib).
    """

    context_length: int
    accuracy_level: int = 4
    precision: str = "float32"
    sequence_length: int | None = None
    rotary_tables: bool = False
    packed_embedding: bool = True
    bfloat16: bool = True
    explicit_zero_points: bool = False
    fused_products: bool = True

    @property
    def half(self) -> bool:
        return self.precision == "float16"

    @property
    def fixed(self) -> bool:
        return self.sequence_length is not None


class Dialect:
    """Base of the ONNX interpreters: holds the graph, the weights and the cache's inputs."""

    name: ClassVar[str]
    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]
    shares_cache_buffer: ClassVar[bool]  # may past and present be one buffer?
    needs_position_ids: ClassVar[bool]
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    allows_fixed_shapes: ClassVar[bool] = False

    def __init__(
        self, decoder: Decoder, graph: GraphBuilder, weights: GraphWeights, options: GraphOptions
    ) -> None:
        self.decoder, self.graph, self.weights, self.options = decoder, graph, weights, options
        self.cache_type = FLOAT16 if options.half else FLOAT
        c = decoder.config
        self._batch: Dimension = "batch"
        self._sequence: Dimension = options.sequence_length or "sequence"
        past: Dimension = "past"
        whole = INT64
        if options.fixed:
            # int32 and a ready float mask: NPU compilers take those without casts.
            self._batch, past, whole = 1, options.context_length, INT32
        self.ids = graph.input("input_ids", whole, [self._batch, self._sequence])
        self.mask = self._mask_input()
        if self.needs_position_ids:
            self.positions = graph.input("position_ids", whole, [self._batch, self._sequence])
        shape: list[Dimension] = [self._batch, c.num_key_value_heads, past, c.head_dim]
        self.past = [
            tuple(
                graph.input(f"past_key_values.{i}.{part}", self.cache_type, shape)
                for part in ("key", "value")
            )
            for i in range(c.num_hidden_layers)
        ]
        self.present: dict[int, tuple[Value, Value]] = {}
        self._shared: dict[str, object] = {}

    def _mask_input(self) -> Value:
        """Open shapes: 1 per position in use. Fixed: what to add to the scores of every query."""
        rows, context = self.options.sequence_length, self.options.context_length
        if rows is None:
            return self.graph.input("attention_mask", INT64, ["batch", "total"])
        return self.graph.input("attention_mask", FLOAT, [1, 1, rows, context + rows])

    def once(self, name: str, build: Callable[[], T]) -> T:
        """What `build` makes, made at the first call: for values that all layers share."""
        if name not in self._shared:
            self._shared[name] = build()
        return self._shared[name]  # type: ignore[return-value]

    def rewrites_embedding(self, name: str) -> bool:
        """Must a float embedding be written as float16, since the target cannot take its bytes?"""
        if self.weights.scheme(name) is not None:
            return False
        if self.weights.is_in_graph(name):  # it was, and the graph has the only copy
            return True
        return self.weights.stored(name).dtype == "BF16" and not self.options.bfloat16

    def half_embedding(self, name: str) -> Value:
        """Rows of a float16 copy, in float16."""
        return self.graph.node("Gather", [self.weights.half_rows(name), self.ids], axis=0)

    def build(self) -> None:
        """Interpret the decoder into the graph."""
        raise NotImplementedError

    def declare_outputs(self, logits: Value) -> None:
        """Name the results; shapes are declared, not inferred, since inference gets some wrong."""
        c = self.decoder.config
        self.graph.output(logits, "logits", FLOAT, [self._batch, self._sequence, c.vocab_size])
        length = self.options.sequence_length or "total"
        shape: list[Dimension] = [self._batch, c.num_key_value_heads, length, c.head_dim]
        for i, (key, value) in sorted(self.present.items()):
            self.graph.output(key, f"present.{i}.key", self.cache_type, shape)
            self.graph.output(value, f"present.{i}.value", self.cache_type, shape)

    def cosine_and_sine(self, rope: Rope, positions: Value) -> tuple[Value, Value]:
        """[..., 1] float positions -> cosine, sine [..., head_dim / 2]."""
        graph = self.graph
        angles = graph.node("Mul", [positions, graph.constant(rope.frequencies())])
        waves = graph.node("Cos", [angles]), graph.node("Sin", [angles])
        if rope.attention_factor == 1.0:
            return waves
        factor = graph.constant(np.float32(rope.attention_factor))
        return graph.node("Mul", [waves[0], factor]), graph.node("Mul", [waves[1], factor])

    def sigmoid_multiply(self, gate: Value, up: Value) -> Value:
        gated = self.graph.node("Mul", [gate, self.graph.node("Sigmoid", [gate])])
        return self.graph.node("Mul", [gated, up])

    def attention_scale(self, attention: Attention) -> float:
        return 1.0 / math.sqrt(attention.head_dim)


def cast(graph: GraphBuilder, value: Value, dtype: ir.DataType) -> Value:
    return graph.node("Cast", [value], to=dtype.value)
