"""Weights as blocked DequantizeLinear (opset 21 on): int4 codes that stay packed in the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.formats.onnx.graph import Value
from dsconv.quant.schemes import WHOLE_ROW, Scheme

from .dialect import Dialect


def dequantize_linear(dialect: Dialect, name: str, scheme: Scheme) -> Value:
    """-> float [inputs, outputs], dequantized along the inputs.

    Symmetric codes are signed and centred on 0, so their zero points are left out unless the
    target needs them spelt out.
    """
    weights, graph = dialect.weights, dialect.graph
    outputs, inputs = weights.checkpoint.parameters[name].shape
    sign = scheme.zero if scheme.symmetric else 0
    kind = {4: ("INT4", "UINT4"), 8: ("I8", "U8")}[scheme.bits][0 if scheme.symmetric else 1]
    pieces = (piece ^ np.uint8(sign) for piece in weights.transposed_codes(name))
    codes = weights.written(f"{name}_codes", kind, (inputs, outputs), _flat(pieces, scheme.bits))
    scales = weights.transposed_scales(name)
    operands = [codes, weights.written(f"{name}_scales", "F32", scales.shape, iter([scales]))]
    if not scheme.symmetric or dialect.options.explicit_zero_points:
        zeros = (
            np.zeros(scales.shape, np.uint8) if scheme.symmetric else weights.transposed_zeros(name)
        )
        flat = _flat(iter([zeros]), scheme.bits)
        operands.append(weights.written(f"{name}_zeros", kind, zeros.shape, flat))
    if scheme.group_size == WHOLE_ROW:
        return graph.node("DequantizeLinear", operands, axis=1)
    return graph.node("DequantizeLinear", operands, axis=0, block_size=scheme.group_size)


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
