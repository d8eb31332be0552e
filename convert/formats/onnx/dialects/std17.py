"""Dialect `std17`: standard operators of opset 17 only, for the widest range of providers.

No 4-bit type and no blocked dequantization there: codes are int8, one per byte, and grouped
scales are applied by Reshape and Mul (constant folding turns them into float when a graph loads).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dsconv.convert.families.base import Attention
from dsconv.convert.formats.onnx.graph import FLOAT, FLOAT16, Value
from dsconv.quant.schemes import WHOLE_ROW, Scheme

from .attention import rotary_waves, score_mask
from .dialect import cast
from .standard import Standard


class Std17(Standard):
    name = "std17"
    opsets: ClassVar[dict[str, int]] = {"": 17}
    ir_version = 8
    precisions = ("float32", "float16")
    allows_fixed_shapes = True

    def normalize(self, x: Value, gain: Value, epsilon: float) -> Value:
        graph = self.graph
        square = graph.node("Mul", [x, x])
        mean = graph.node("ReduceMean", [square], axes=[-1], keepdims=1)
        return self.scale_by_root(x, mean, gain, epsilon)

    def scale_by_root(self, x: Value, mean: Value, gain: Value, epsilon: float) -> Value:
        graph = self.graph
        shifted = graph.node("Add", [mean, graph.constant(np.float32(epsilon))])
        return graph.node("Mul", [graph.node("Div", [x, graph.node("Sqrt", [shifted])]), gain])

    def attention(self, query: Value, key: Value, value: Value, attention: Attention) -> Value:
        """Grouped queries without repeating keys: [batch, kv_heads, heads per kv head, ...]."""
        graph, a = self.graph, attention
        repeat = a.heads // a.kv_heads
        q = self._rotate(self._split_heads(query, a.heads, a.head_dim), a)
        k = self._rotate(self._split_heads(key, a.kv_heads, a.head_dim), a)
        v = self._split_heads(value, a.kv_heads, a.head_dim)
        k, v = self._extend_cache(a.layer, k, v)
        scale = graph.constant(np.float32(self.attention_scale(a)))
        scaled = graph.node("Mul", [q, scale])
        if self.options.fixed:
            return self._fixed_attention(scaled, k, v, a)
        shape = graph.integers(0, a.kv_heads, repeat, -1, a.head_dim)
        grouped = graph.node("Reshape", [scaled, shape])
        turned = graph.node("Transpose", [k], perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", [grouped, self._unsqueeze(turned, 2)])
        masked = graph.node("Add", [scores, self._unsqueeze(score_mask(self), 2)])
        weights = graph.node("Softmax", [masked], axis=-1)
        mixed = graph.node("MatMul", [weights, self._unsqueeze(v, 2)])
        return self._merge_heads(mixed, a)

    def _fixed_attention(self, q: Value, k: Value, v: Value, a: Attention) -> Value:
        """The same with arrays of at most four axes, which is what NPU compilers take."""
        graph, rows, repeat = self.graph, self.options.sequence_length, a.heads // a.kv_heads
        assert rows is not None
        tall = [1, a.kv_heads, repeat * rows]
        queries = graph.node("Reshape", [q, graph.integers(*tall, a.head_dim)])
        turned = graph.node("Transpose", [k], perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", [queries, turned])
        total = self.options.context_length + rows
        apart = graph.node("Reshape", [scores, graph.integers(a.kv_heads, repeat, rows, total)])
        masked = graph.node("Add", [apart, score_mask(self)])
        weights = graph.node("Softmax", [masked], axis=-1)
        together = graph.node("Reshape", [weights, graph.integers(*tall, total)])
        return self._merge_heads(graph.node("MatMul", [together, v]), a)

    def _extend_cache(self, layer: int, key: Value, value: Value) -> tuple[Value, Value]:
        """Past and new keys and values in float32; declares what the graph returns of them."""
        graph, half, fixed = self.graph, self.options.half, self.options.fixed
        new = [cast(graph, x, FLOAT16) if half else x for x in (key, value)]
        whole = [
            graph.node("Concat", [past, x], axis=2)
            for past, x in zip(self.past[layer], new, strict=True)
        ]
        present = new if fixed else whole
        self.present[layer] = (present[0], present[1])
        wide = [cast(graph, x, FLOAT) if half else x for x in whole]
        return wide[0], wide[1]

    def _merge_heads(self, mixed: Value, a: Attention) -> Value:
        """[batch, ..., sequence, head_dim] in the order of heads -> [batch, sequence, features]."""
        graph = self.graph
        rows = self.options.sequence_length or -1
        by_head = graph.node("Reshape", [mixed, graph.integers(0, a.heads, rows, a.head_dim)])
        turned = graph.node("Transpose", [by_head], perm=[0, 2, 1, 3])
        return graph.node("Reshape", [turned, graph.integers(0, 0, a.heads * a.head_dim)])

    def quantized_matrix(self, name: str, scheme: Scheme) -> Value:
        graph, weights = self.graph, self.weights
        outputs, inputs = weights.checkpoint.parameters[name].shape
        # Signed bytes whatever the bits: symmetric codes centred on 0; asymmetric ones of 8 bits
        # do not fit int8 and stay unsigned.
        kind = "I8" if scheme.symmetric else "U8"
        offset = np.uint8(scheme.zero if scheme.symmetric else 0)
        pieces = (piece - offset for piece in weights.transposed_codes(name))  # wraps to int8
        codes = weights.written(f"{name}_codes", kind, (inputs, outputs), pieces)
        values = weights.transposed_scales(name)
        scales = weights.written(f"{name}_scales", "F32", values.shape, iter([values]))
        if scheme.group_size == WHOLE_ROW:
            points = (
                np.zeros(outputs, np.uint8) if scheme.symmetric else weights.transposed_zeros(name)
            )
            zeros = weights.written(f"{name}_zeros", kind, (outputs,), iter([points]))
            return graph.node("DequantizeLinear", [codes, scales, zeros], axis=1)
        self.require_whole_groups(name, scheme)
        groups = values.shape[0]
        shape = graph.integers(groups, scheme.group_size, outputs)
        blocks = graph.node("Reshape", [cast(graph, codes, FLOAT), shape])
        if not scheme.symmetric:
            points = weights.transposed_zeros(name)
            zeros = weights.written(f"{name}_zeros", "U8", points.shape, iter([points]))
            blocks = graph.node("Sub", [blocks, self._unsqueeze(cast(graph, zeros, FLOAT), 1)])
        scaled = graph.node("Mul", [blocks, self._unsqueeze(scales, 1)])
        return graph.node("Reshape", [scaled, graph.integers(inputs, outputs)])

    def _unsqueeze(self, x: Value, axis: int) -> Value:
        return self.graph.node("Unsqueeze", [x, self.graph.integers(axis)])

    def _split_heads(self, x: Value, heads: int, head_dim: int) -> Value:
        """[batch, sequence, heads * head_dim] -> [batch, heads, sequence, head_dim]."""
        parts = self.graph.node("Reshape", [x, self.graph.integers(0, 0, heads, head_dim)])
        return self.graph.node("Transpose", [parts], perm=[0, 2, 1, 3])

    def _rotate(self, x: Value, attention: Attention) -> Value:
        """(first, second) halves of a head -> (first cos - second sin, second cos + first sin)."""
        graph, half = self.graph, attention.head_dim // 2
        cosine, sine = (self._unsqueeze(w, 1) for w in rotary_waves(self, attention.rope))
        axis = graph.integers(-1)
        first = graph.node("Slice", [x, graph.integers(0), graph.integers(half), axis])
        second = graph.node(
            "Slice", [x, graph.integers(half), graph.integers(attention.head_dim), axis]
        )
        turned_first = graph.node(
            "Sub", [graph.node("Mul", [first, cosine]), graph.node("Mul", [second, sine])]
        )
        turned_second = graph.node(
            "Add", [graph.node("Mul", [second, cosine]), graph.node("Mul", [first, sine])]
        )
        return graph.node("Concat", [turned_first, turned_second], axis=-1)
