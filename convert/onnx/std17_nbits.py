"""Dialect `std17-nbits`: quantized products by MatMulNBits, everything else as in std17.

For providers that took over ONNX Runtime's quantized product, and not its attention.
"""

from __future__ import annotations

from typing import ClassVar

from ..families.base import Linear
from .graph import MICROSOFT, Value
from .nbits import matmul_nbits
from .std17 import Std17


class Std17NBits(Std17):
    name = "std17-nbits"
    opsets: ClassVar[dict[str, int]] = {"": 17, MICROSOFT: 1}

    def product(self, x: Value, linear: Linear) -> Value:
        scheme = None if self.options.half else self.weights.scheme(f"{linear.name}.weight")
        if scheme is None:
            return super().product(x, linear)
        return matmul_nbits(self, x, [linear], scheme, None)
