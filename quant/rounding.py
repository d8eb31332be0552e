"""Float rows to codes and scales, without calibration data. Pure functions, float32 arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .int8_rows import Int8Rows, Int8RowsMatrix, dequantize_rows, round_weights
from .integer import IntegerMatrix, IntegerScheme
from .scale_min import (
    ScaleMin,
    ScaleMinMatrix,
    dequantize_scale_min,
    fit_grid,
    plain_grid,
    searched_grid,
)
from .scales import (
    Floats,
    ScaleOverflow,
    check_scales,
    grouped,
    inverse,
    plain_scales,
    searched_scales,
)

__all__ = [
    "METHODS",
    "AnyQuantized",
    "AnyScheme",
    "ScaleOverflow",
    "dequantize",
    "round_to_nearest",
    "search",
]

AnyScheme = IntegerScheme | ScaleMin | Int8Rows
AnyQuantized = IntegerMatrix | ScaleMinMatrix | Int8RowsMatrix


def dequantize(quantized: AnyQuantized) -> Floats:
    """-> [rows, columns] float32; for the integer scheme scale * (code - zero), exact."""
    if isinstance(quantized, ScaleMinMatrix):
        return dequantize_scale_min(quantized)
    if isinstance(quantized, Int8RowsMatrix):
        return dequantize_rows(quantized)
    scheme = quantized.scheme
    columns = quantized.codes.shape[1]
    codes = grouped(quantized.codes.astype(np.float32), scheme)
    zeros = quantized.zeros
    centre = np.float32(scheme.zero) if zeros is None else zeros.astype(np.float32)[..., None]
    values = (codes - centre) * quantized.scales.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(codes.shape[0], -1)[:, :columns])


def round_to_nearest(weights: Floats, scheme: AnyScheme) -> AnyQuantized:
    """Textbook rounding; symmetric codes equal those of onnxruntime-genai's builder.

    The codes follow from the unrounded scale, which is stored as float16 afterwards.
    """
    if isinstance(scheme, ScaleMin):
        return fit_grid(weights, plain_grid(weights, scheme), scheme)
    if isinstance(scheme, Int8Rows):
        return round_weights(weights)
    return fit_codes(weights, *plain_scales(weights, scheme), scheme)


def search(weights: Floats, scheme: AnyScheme, importance: Floats | None = None) -> AnyQuantized:
    """Smallest squared error per group over a sweep of scales; never worse than rounding.

    importance: weight of each column's squared error [columns]; None counts all alike.
    """
    if isinstance(scheme, ScaleMin):
        return fit_grid(weights, searched_grid(weights, scheme, importance), scheme)
    if isinstance(scheme, Int8Rows):
        return round_weights(weights)
    return fit_codes(weights, *searched_scales(weights, scheme, importance), scheme)


METHODS: dict[str, Callable[[Floats, AnyScheme], AnyQuantized]] = {
    "search": search,
    "rtn": round_to_nearest,
}


def fit_codes(
    weights: Floats, scales: Floats, zeros: Floats | None, scheme: IntegerScheme
) -> IntegerMatrix:
    """The nearest codes for given scales and zero points [rows, groups]."""
    w = grouped(weights, scheme)
    centre = np.float32(scheme.zero) if zeros is None else zeros[..., None]
    codes = nearest_codes(w, scales[..., None], centre, scheme)
    flat = codes.reshape(len(weights), -1)[:, : weights.shape[1]]
    return finish(flat, scales, zeros, scheme)


def nearest_codes(
    w: Floats, scales: Floats, centre: Floats | np.float32, scheme: AnyScheme
) -> Floats:
    """Codes of `w`, with scales and zero points that broadcast against it.

    Halves go up, in onnxruntime's own order of operations: weights come from bfloat16 files, they
    lie on a grid, and ties are common.
    """
    with np.errstate(over="ignore"):
        codes: Floats = w * inverse(scales)
    codes += centre + np.float32(0.5)
    np.floor(codes, out=codes)
    return np.clip(codes, 0, scheme.max_code, out=codes)


def finish(
    codes: NDArray[Any], scales: Floats, zeros: Floats | None, scheme: IntegerScheme
) -> IntegerMatrix:
    """Codes [rows, columns] and scales [rows, groups] in the types they are stored in."""
    check_scales(scales)
    return IntegerMatrix(
        np.ascontiguousarray(codes.astype(np.uint8)),
        scales.astype(np.float16),
        None if zeros is None else zeros.astype(np.uint8),
        scheme,
    )
