"""Dialect `std24`: standard operators of opset 24 (Attention, RotaryEmbedding, RMSNormalization,
blocked DequantizeLinear), which ONNX Runtime fuses into its own fast kernels.
"""

from __future__ import annotations

from typing import ClassVar

from dsconv.convert.families.base import Attention
from dsconv.convert.formats.onnx.graph import Value
from dsconv.quant.schemes import Scheme

from .attention import attention24
from .blocked import dequantize_linear
from .standard import Standard


class Std24(Standard):
    name = "std24"
    opsets: ClassVar[dict[str, int]] = {"": 24}
    ir_version = 11

    def normalize(self, x: Value, gain: Value, epsilon: float) -> Value:
        return self.graph.node(
            "RMSNormalization", [x, gain], axis=-1, epsilon=epsilon, stash_type=1
        )

    def attention(self, query: Value, key: Value, value: Value, attention: Attention) -> Value:
        output, *present = attention24(self, query, key, value, attention)
        self.present[attention.layer] = (present[0], present[1])
        return output

    def quantized_matrix(self, name: str, scheme: Scheme) -> Value:
        return dequantize_linear(self, name, scheme)
