"""What the three dialects share: the inputs and outputs of a decoder with its KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import onnx_ir as ir

from ..families.base import Attention, Decoder
from ..families.rope import Rope
from .graph import FLOAT, INT64, Dimension, GraphBuilder, Value
from .weights import GraphWeights

T = TypeVar("T")


@dataclass(frozen=True)
class GraphOptions:
    """`accuracy_level`: 4 multiplies in int8 (fast), 0 in float32 (exact)."""

    context_length: int
    accuracy_level: int = 4


class Dialect:
    """Base of the ONNX interpreters: holds the graph, the weights and the cache's inputs."""

    name: ClassVar[str]
    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]
    shares_cache_buffer: ClassVar[bool]  # may past and present be one buffer?
    needs_position_ids: ClassVar[bool]

    def __init__(
        self, decoder: Decoder, graph: GraphBuilder, weights: GraphWeights, options: GraphOptions
    ) -> None:
        self.decoder, self.graph, self.weights, self.options = decoder, graph, weights, options
        c = decoder.config
        self.ids = graph.input("input_ids", INT64, ["batch", "sequence"])
        self.mask = graph.input("attention_mask", INT64, ["batch", "total"])
        if self.needs_position_ids:
            self.positions = graph.input("position_ids", INT64, ["batch", "sequence"])
        shape: list[Dimension] = ["batch", c.num_key_value_heads, "past", c.head_dim]
        self.past = [
            tuple(
                graph.input(f"past_key_values.{i}.{part}", FLOAT, shape)
                for part in ("key", "value")
            )
            for i in range(c.num_hidden_layers)
        ]
        self.present: dict[int, tuple[Value, Value]] = {}
        self._shared: dict[str, object] = {}

    def once(self, name: str, build: Callable[[], T]) -> T:
        """What `build` makes, made at the first call: for values that all layers share."""
        if name not in self._shared:
            self._shared[name] = build()
        return self._shared[name]  # type: ignore[return-value]

    def build(self) -> None:
        """Interpret the decoder into the graph."""
        raise NotImplementedError

    def declare_outputs(self, logits: Value) -> None:
        """Name the results; shapes are declared, not inferred, since inference gets some wrong."""
        c = self.decoder.config
        self.graph.output(logits, "logits", FLOAT, ["batch", "sequence", c.vocab_size])
        shape: list[Dimension] = ["batch", c.num_key_value_heads, "total", c.head_dim]
        for i, (key, value) in sorted(self.present.items()):
            self.graph.output(key, f"present.{i}.key", FLOAT, shape)
            self.graph.output(value, f"present.{i}.value", FLOAT, shape)

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
