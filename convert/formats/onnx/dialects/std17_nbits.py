"""Dialect `std17-nbits`: quantized products by MatMulNBits, norms in one node, the rest as std17.

For providers that took over those two operators of ONNX Runtime, and not its attention. Some of
them compute in float16, where the squares of a norm in parts leave the range: whole, it is right.
"""

from __future__ import annotations

from typing import ClassVar

from dsconv.convert.families.base import Linear
from dsconv.convert.formats.onnx.graph import MICROSOFT, Value

from .nbits import matmul_nbits
from .std17 import Std17


class Std17NBits(Std17):
    name = "std17-nbits"
    opsets: ClassVar[dict[str, int]] = {"": 17, MICROSOFT: 1}

    def normalize(self, x: Value, gain: Value, epsilon: float) -> Value:
        return self.graph.node(
            "SimplifiedLayerNormalization", [x, gain], axis=-1, epsilon=epsilon, stash_type=1
        )

    def product(self, x: Value, linear: Linear) -> Value:
        scheme = None if self.options.half else self.weights.scheme(f"{linear.name}.weight")
        if scheme is None:
            return super().product(x, linear)
        return matmul_nbits(self, x, [linear], scheme, None)
