"""Dialect `std24`: standard operators of opset 24 (Attention, RotaryEmbedding, RMSNormalization,
blocked DequantizeLinear), which ONNX Runtime fuses into its own fast kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...quant.scheme import WHOLE_ROW, Scheme
from ..families.base import Attention
from .attention import attention24
from .graph import Value
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
        """DequantizeLinear along the inputs; signed codes when symmetric, so no zero points."""
        weights = self.weights
        outputs, inputs = weights.checkpoint.parameters[name].shape
        sign = scheme.zero if scheme.symmetric else 0
        kind = {4: ("INT4", "UINT4"), 8: ("I8", "U8")}[scheme.bits][0 if scheme.symmetric else 1]
        pieces = (piece ^ np.uint8(sign) for piece in weights.transposed_codes(name))
        codes = weights.written(
            f"{name}_codes", kind, (inputs, outputs), _flat(pieces, scheme.bits)
        )
        scales = weights.transposed_scales(name)
        operands = [codes, weights.written(f"{name}_scales", "F32", scales.shape, iter([scales]))]
        if not scheme.symmetric:
            zeros = weights.transposed_zeros(name)
            flat = _flat(iter([zeros]), scheme.bits)
            operands.append(weights.written(f"{name}_zeros", kind, zeros.shape, flat))
        if scheme.group_size == WHOLE_ROW:
            return self.graph.node("DequantizeLinear", operands, axis=1)
        return self.graph.node("DequantizeLinear", operands, axis=0, block_size=scheme.group_size)


def _flat(pieces: Iterator[NDArray[np.uint8]], bits: int) -> Iterator[NDArray[Any]]:
    """ONNX packs 4-bit tensors over all elements, rows not padded; only the end may be odd."""
    for piece in pieces:
        if bits == 8:
            yield piece
            continue
        codes = (piece & 15).reshape(-1)
        if codes.size % 2:
            codes = np.append(codes, np.uint8(0))
        yield codes[0::2] | (codes[1::2] << 4)
