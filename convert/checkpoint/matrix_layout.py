"""How a quantized matrix lies in safetensors: which tensors, their shapes, bytes there and back.

The integer schemes are stored as compressed-tensors stores them, scale and minimum under names of
its own; all are described in docs/quantized-checkpoint.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files.safetensors import PlannedTensor
from dsconv.quant.int8_rows import Int8Rows, Int8RowsMatrix
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.packing import (
    pack_bits,
    pack_rows,
    pack_zero_points,
    packed_row_bytes,
    unpack_bits,
    unpack_rows,
    unpack_zero_points,
)
from dsconv.quant.rounding import AnyQuantized, AnyScheme
from dsconv.quant.scale_min import STEP_BITS, ScaleMin, ScaleMinMatrix

from .tensors import TensorSource

SHAPE = "weight_shape"  # of the whole matrix; compressed-tensors wants it


def stored_tensors(module: str, shape: tuple[int, int], scheme: AnyScheme) -> list[PlannedTensor]:
    """The tensors of a matrix [rows, columns], codes first, without SHAPE."""
    rows, columns = shape
    groups = scheme.groups(columns)
    if isinstance(scheme, ScaleMin):
        steps, units = -(-groups * STEP_BITS // 8), scheme.super_blocks(columns)
        kinds = [
            ("weight_codes", "U8", (rows, -(-columns * scheme.bits // 8))),
            ("weight_scale_steps", "U8", (rows, steps)),
            ("weight_minimum_steps", "U8", (rows, steps)),
            ("weight_super_scale", "F16", (rows, units)),
            ("weight_super_minimum", "F16", (rows, units)),
        ]
    elif isinstance(scheme, Int8Rows):
        kinds = [("weight", "I8", (rows, columns)), ("weight_scale", "F32", (rows, 1))]
    else:
        words = packed_row_bytes(columns, scheme.bits) // 4
        kinds = [
            ("weight_packed", "I32", (rows, words)),
            ("weight_scale", "F16", (rows, groups)),
        ]
        if not scheme.symmetric:
            kinds.append(("weight_zero_point", "I32", (-(-rows * scheme.bits // 32), groups)))
    return [PlannedTensor(f"{module}.{kind}", dtype, size) for kind, dtype, size in kinds]


def has_shape_tensor(scheme: AnyScheme) -> bool:
    return isinstance(scheme, IntegerScheme)


def encode(quantized: AnyQuantized) -> dict[str, NDArray[Any]]:
    """Kind of tensor -> the bytes of these rows."""
    if isinstance(quantized, ScaleMinMatrix):
        return {
            "weight_codes": pack_bits(quantized.codes, quantized.scheme.bits),
            "weight_scale_steps": pack_bits(quantized.scale_steps, STEP_BITS),
            "weight_minimum_steps": pack_bits(quantized.minimum_steps, STEP_BITS),
            "weight_super_scale": quantized.super_scales,
            "weight_super_minimum": quantized.super_minima,
        }
    if isinstance(quantized, Int8RowsMatrix):
        return {"weight": quantized.codes, "weight_scale": quantized.scales}
    bits = quantized.scheme.bits
    arrays: dict[str, NDArray[Any]] = {
        "weight_packed": pack_rows(quantized.codes, bits),
        "weight_scale": quantized.scales,
    }
    if quantized.zeros is not None:
        arrays["weight_zero_point"] = pack_zero_points(quantized.zeros, bits)
    return arrays


def read_quantized(
    source: TensorSource, module: str, scheme: AnyScheme, columns: int, start: int, stop: int
) -> AnyQuantized:
    """Rows [start, stop) of a matrix."""

    def rows(kind: str) -> NDArray[Any]:
        return source.rows(f"{module}.{kind}", start, stop)

    if isinstance(scheme, ScaleMin):
        groups = scheme.groups(columns)
        return ScaleMinMatrix(
            unpack_bits(rows("weight_codes"), scheme.bits, columns),
            unpack_bits(rows("weight_scale_steps"), STEP_BITS, groups),
            unpack_bits(rows("weight_minimum_steps"), STEP_BITS, groups),
            rows("weight_super_scale").astype(np.float16),
            rows("weight_super_minimum").astype(np.float16),
            scheme,
        )
    if isinstance(scheme, Int8Rows):
        return Int8RowsMatrix(rows("weight"), rows("weight_scale").astype(np.float32))
    codes = unpack_rows(rows("weight_packed").view(np.uint8), scheme.bits, columns)
    scales = rows("weight_scale").astype(np.float16)
    zeros = None if scheme.symmetric else read_zero_points(source, module, scheme, start, stop)
    return IntegerMatrix(codes, scales, zeros, scheme)


def read_zero_points(
    source: TensorSource, module: str, scheme: IntegerScheme, start: int, stop: int
) -> NDArray[np.uint8]:
    """-> [stop - start, groups] of an asymmetric matrix."""
    per_word = 32 // scheme.bits  # rows that share one word
    first, last = start // per_word, -(-stop // per_word)
    words = source.rows(f"{module}.weight_zero_point", first, last)
    zeros = unpack_zero_points(words, scheme.bits, len(words) * per_word)
    return zeros[start - first * per_word : stop - first * per_word]
