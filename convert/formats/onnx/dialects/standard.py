"""What the dialects of standard operators share.

Matrices are [inputs, outputs] here, so quantized codes are transposed into the data file. The
embedding stays in the checkpoint's own bytes: its rows are gathered packed and unpacked by
arithmetic, four or eight bits alike.

With precision float16 the matrices are float16, dequantized, and so are their products and the
cache; norms, rotation, scores and the residual stream stay in float32. Squares of real activations
and products of Qwen2's queries and keys leave float16's range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsconv.convert.families.base import Attention, Linear, Norm, Table
from dsconv.convert.formats.onnx.graph import FLOAT, FLOAT16, Value
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import Scheme

from .dialect import Dialect, cast


class Standard(Dialect):
    shares_cache_buffer = False
    needs_position_ids = True

    def build(self) -> None:
        self.declare_outputs(self.decoder.forward(self))

    # --- differs between std24 and std17 --------------------------------------------------------

    def normalize(self, x: Value, gain: Value, epsilon: float) -> Value:
        raise NotImplementedError

    def attention(self, query: Value, key: Value, value: Value, attention: Attention) -> Value:
        raise NotImplementedError

    def quantized_matrix(self, name: str, scheme: Scheme) -> Value:
        """-> float [inputs, outputs] after dequantization in the graph."""
        raise NotImplementedError

    # --- the vocabulary ---------------------------------------------------------------------------

    def embedding(self, table: Table) -> Value:
        name = f"{table.name}.weight"
        if self.options.half:
            return cast(self.graph, self.half_embedding(name), FLOAT)
        scheme = self.weights.scheme(name)
        is_packed = scheme is not None
        if (is_packed and not self.options.packed_embedding) or self.rewrites_embedding(name):
            return cast(self.graph, self.half_embedding(name), FLOAT)
        if scheme is None:
            rows = self.weights.range([name], (table.vocabulary, table.hidden))
            gathered = self.graph.node("Gather", [rows, self.ids], axis=0)
            return self.graph.cast_between(gathered, self.weights.stored(name).dtype)
        return self._quantized_embedding(name, table, scheme)

    def rms_norm(self, x: Value, norm: Norm) -> Value:
        gain = self.vector(f"{norm.name}.weight")
        if norm.heads == 1:
            return self.normalize(x, gain, norm.epsilon)
        graph = self.graph
        # Three axes: QNN 2.7 gives wrong values for a norm of heads on an axis of their own.
        rows = graph.node("Reshape", [x, graph.integers(0, -1, norm.size)])
        normed = self.normalize(rows, gain, norm.epsilon)
        return graph.node("Reshape", [normed, graph.integers(0, -1, norm.heads * norm.size)])

    def linears(self, x: Value, group: Sequence[Linear]) -> list[Value]:
        return [self._linear(x, linear) for linear in group]

    def silu_multiply(self, gate: Value, up: Value) -> Value:
        return self.sigmoid_multiply(gate, up)

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.node("Add", [x, y])

    def head(self, x: Value, linear: Linear, tied_to: Table | None) -> Value:
        name = linear.name if tied_to is None else tied_to.name
        return self._linear(x, Linear(name, linear.outputs, linear.inputs))

    # --- weights ----------------------------------------------------------------------------------

    def vector(self, name: str) -> Value:
        """A gain or bias in float32."""
        return (
            self.weights.copied_vector(name) if self.options.half else self.weights.floats([name])
        )

    def product(self, x: Value, linear: Linear) -> Value:
        """x Wᵀ without the bias."""
        name = f"{linear.name}.weight"
        if self.options.half:
            x16 = self.once(f"{x.name}:F16", lambda: cast(self.graph, x, FLOAT16))
            matrix = self.weights.half_transposed(name)
            product = self.graph.node("MatMul", [x16, matrix], name=f"{name}.MatMul")
            return cast(self.graph, product, FLOAT)
        scheme = self.weights.scheme(name)
        if scheme is None:
            matrix = self.graph.node("Transpose", [self.weights.floats([name])], perm=[1, 0])
        else:
            matrix = self.quantized_matrix(name, scheme)
        return self.graph.node("MatMul", [x, matrix], name=f"{name}.MatMul")

    def _linear(self, x: Value, linear: Linear) -> Value:
        product = self.product(x, linear)
        if not linear.bias:
            return product
        return self.graph.node("Add", [product, self.vector(f"{linear.name}.bias")])

    def require_whole_groups(self, name: str, scheme: Scheme) -> None:
        columns = self.weights.checkpoint.parameters[name].shape[1]
        if scheme.group_size > 0 and columns % scheme.group_size:
            raise UnsupportedError(
                f"{name}: {columns} inputs are no multiple of the group {scheme.group_size}",
                f"dialect {self.name} needs whole groups; quantize again with dsconv",
            )

    def _quantized_embedding(self, name: str, table: Table, scheme: Scheme) -> Value:
        """Gather packed rows, take the bytes apart by arithmetic, scale: exact in float32."""
        graph, weights = self.graph, self.weights
        row_bytes = weights.stored(f"{name}_packed").shape[1] * 4
        packed = weights.range([f"{name}_packed"], (table.vocabulary, row_bytes), "U8")
        codes = cast(graph, graph.node("Gather", [packed, self.ids], axis=0), FLOAT)
        if scheme.bits == 4:
            sixteen = graph.constant(np.float32(16))
            high = graph.node("Floor", [graph.node("Div", [codes, sixteen])])
            low = graph.node("Sub", [codes, graph.node("Mul", [high, sixteen])])
            last = graph.integers(-1)
            pair = [graph.node("Unsqueeze", [nibble, last]) for nibble in (low, high)]
            interleaved = graph.node("Concat", pair, axis=-1)
            codes = graph.node("Reshape", [interleaved, graph.integers(0, 0, row_bytes * 2)])
        width = row_bytes * 8 // scheme.bits
        if width != table.hidden:  # the padding of a row to whole words
            bounds = [graph.integers(bound) for bound in (0, table.hidden, -1)]
            codes = graph.node("Slice", [codes, *bounds])
        groups = scheme.groups(table.hidden)
        self.require_whole_groups(name, scheme)
        grouped = graph.node("Reshape", [codes, graph.integers(0, 0, groups, -1)])
        centred = graph.node("Sub", [grouped, self._embedding_zeros(name, table, scheme, groups)])
        scales = weights.range([f"{name}_scale"], (table.vocabulary, groups))
        chosen = cast(graph, graph.node("Gather", [scales, self.ids], axis=0), FLOAT)
        column = graph.node("Unsqueeze", [chosen, graph.integers(-1)])
        scaled = graph.node("Mul", [centred, column])
        return graph.node("Reshape", [scaled, graph.integers(0, 0, table.hidden)])

    def _embedding_zeros(self, name: str, table: Table, scheme: Scheme, groups: int) -> Value:
        if scheme.symmetric:
            return self.graph.constant(np.float32(scheme.zero))
        shape = (table.vocabulary, groups)
        checkpoint = self.weights.checkpoint
        pieces = (checkpoint.zero_points(name, *rows) for rows in self.weights.chunks(name))
        zeros = self.weights.written(f"{name}_row_zeros", "U8", shape, pieces)
        chosen = cast(self.graph, self.graph.node("Gather", [zeros, self.ids], axis=0), FLOAT)
        return self.graph.node("Unsqueeze", [chosen, self.graph.integers(-1)])
