"""Dialect `std21`: the operators of std17 at opset 21, with int4 weights that stay packed.

For compilers that know blocked DequantizeLinear, and not yet the attention of opset 23.
"""

from __future__ import annotations

from typing import ClassVar

from dsconv.convert.formats.onnx.graph import Value
from dsconv.quant.schemes import WHOLE_ROW, Scheme

from .blocked import dequantize_linear
from .std17 import Std17


class Std21(Std17):
    name = "std21"
    opsets: ClassVar[dict[str, int]] = {"": 21}
    ir_version = 10

    def normalize(self, x: Value, gain: Value, epsilon: float) -> Value:
        """Since opset 18 ReduceMean takes its axes as an input."""
        square = self.graph.node("Mul", [x, x])
        mean = self.graph.node("ReduceMean", [square, self.graph.integers(-1)], keepdims=1)
        return self.scale_by_root(x, mean, gain, epsilon)

    def quantized_matrix(self, name: str, scheme: Scheme) -> Value:
        if scheme.group_size != WHOLE_ROW:
            self.require_whole_groups(name, scheme)
        return dequantize_linear(self, name, scheme)
