"""Float rows to codes and scales, without calibration data. Pure functions, float32 arithmetic.

Two methods:
- `round_to_nearest`: the scale maps the largest weight of a group onto the end of the code range.
- `search`: candidates for the scale around that value; for each one the codes are rounded and the
  scale is refitted to them by least squares; the smallest squared error wins. (The idea of
  llama.cpp's k-quants; with codes c and weights w the best scale is Σwc/Σc², and it leaves the
  error Σw² - (Σwc)²/Σc².)

Groups whose weights are all equal stay exact as far as float16 holds the value: code zero ± 1.

4-bit scales found by search keep so few significant bits that scale * (code - zero) is exact in
float16: a runtime that unpacks to float16 then computes with the very weights that were verified.
It costs 0.03 % (symmetric) or 0.15 % (asymmetric) of the squared error on normal weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .scheme import WHOLE_ROW, Quantized, Scheme

Floats = NDArray[np.float32]

MAX_SCALE = float(np.finfo(np.float16).max)

# Scales tried, as fractions of the largest weight's own scale, 1 among them: plain rounding is the
# worst that can come out. Long rows profit from clipping more.
SEARCH_4_BITS = np.linspace(0.72, 1.16, 12, dtype=np.float32)
SEARCH_4_BITS_ROW = np.linspace(0.44, 1.12, 18, dtype=np.float32)
SEARCH_8_BITS = np.array([0.98, 1.0, 1.008], np.float32)


class ScaleOverflow(ValueError):
    """A weight is so large that its group's scale does not fit float16."""


def grouped(
    weights: Floats, scheme: Scheme, padding_mode: Literal["constant", "edge"] = "constant"
) -> Floats:
    """[rows, columns] -> [rows, groups, size], the last group padded with zeros (or its end)."""
    rows, columns = weights.shape
    groups = scheme.groups(columns)
    size = columns if scheme.group_size == WHOLE_ROW else scheme.group_size
    padding = groups * size - columns
    if padding:
        weights = np.pad(weights, ((0, 0), (0, padding)), padding_mode)
    return weights.reshape(rows, groups, size)


def dequantize(quantized: Quantized) -> Floats:
    """-> [rows, columns] float32: scale * (code - zero), exact in float32."""
    scheme = quantized.scheme
    columns = quantized.codes.shape[1]
    codes = grouped(quantized.codes.astype(np.float32), scheme)
    zeros = quantized.zeros
    centre = np.float32(scheme.zero) if zeros is None else zeros.astype(np.float32)[..., None]
    values = (codes - centre) * quantized.scales.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(codes.shape[0], -1)[:, :columns])


def round_to_nearest(weights: Floats, scheme: Scheme) -> Quantized:
    """Textbook rounding; symmetric codes equal those of onnxruntime-genai's builder.

    The codes follow from the unrounded scale, which is stored as float16 afterwards.
    """
    w = grouped(weights, scheme)
    zeros: Floats | None = None
    if scheme.symmetric:
        scales = _largest(w) / -np.float32(scheme.zero)
    else:
        low, high = _range(w)
        scales = (high - low) / np.float32(scheme.max_code)
        zeros = _round_zeros(low, scales, scheme)
        scales, zeros = _keep_constant_groups(weights, scales, zeros, scheme)
    codes = _round_codes(w, scales, _centre(zeros, scheme), scheme)
    return _finish(weights, codes, scales, zeros, scheme)


def search(weights: Floats, scheme: Scheme) -> Quantized:
    """Smallest squared error per group over a sweep of scales; never worse than rounding."""
    w = grouped(weights, scheme)
    scales, zeros = (_search_symmetric if scheme.symmetric else _search_asymmetric)(w, scheme)
    if scheme.bits == 4:
        scales = _trim(scales, 8 if scheme.symmetric else 7)
    scales, zeros = _keep_constant_groups(weights, scales, zeros, scheme)
    _check_scales(scales)
    rounded = scales.astype(np.float16).astype(np.float32)  # the codes must fit the stored scale
    codes = _round_codes(w, rounded, _centre(zeros, scheme), scheme)
    return _finish(weights, codes, rounded, zeros, scheme)


METHODS: dict[str, Callable[[Floats, Scheme], Quantized]] = {
    "search": search,
    "rtn": round_to_nearest,
}


def _largest(w: Floats) -> Floats:
    """[..., size] -> [...]: the value of largest magnitude; of equals the negative one."""
    low, high = w.min(-1), w.max(-1)
    largest: Floats = np.where(high > -low, high, low)
    return largest


def _range(w: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest value of each group, stretched to hold 0."""
    return np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 for a scale of 0 (whose codes then are the zero point)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _round_zeros(low: Floats, scales: Floats, scheme: Scheme) -> Floats:
    zeros: Floats = np.clip(np.rint(-low * _inverse(scales)), 0, scheme.max_code)
    return zeros


def _centre(zeros: Floats | None, scheme: Scheme) -> Floats | np.float32:
    return np.float32(scheme.zero) if zeros is None else zeros[..., None]


def _round_codes(w: Floats, scales: Floats, zero: Floats | np.float32, scheme: Scheme) -> Floats:
    """Nearest codes; halves go up, in onnxruntime's own order of operations.

    Weights come from bfloat16 files: they lie on a grid, and ties are common.
    """
    with np.errstate(over="ignore"):
        codes: Floats = w * _inverse(scales)[..., None]
    codes += zero + np.float32(0.5)
    np.floor(codes, out=codes)
    return np.clip(codes, 0, scheme.max_code, out=codes)


def _check_scales(scales: Floats) -> None:
    largest = float(np.abs(scales).max(initial=0.0))
    if largest > MAX_SCALE:
        raise ScaleOverflow(f"a scale of {largest:g} does not fit float16 (limit {MAX_SCALE:g})")


def _finish(
    weights: Floats, codes: Floats, scales: Floats, zeros: Floats | None, scheme: Scheme
) -> Quantized:
    _check_scales(scales)
    rows, columns = weights.shape
    return Quantized(
        np.ascontiguousarray(codes.astype(np.uint8).reshape(rows, -1)[:, :columns]),
        scales.astype(np.float16),
        None if zeros is None else zeros.astype(np.uint8),
        scheme,
    )


def _sweep(scheme: Scheme) -> Floats:
    if scheme.bits == 8:
        return SEARCH_8_BITS
    return SEARCH_4_BITS_ROW if scheme.group_size == WHOLE_ROW else SEARCH_4_BITS


def _refit(w: Floats, centred: Floats) -> tuple[Floats, Floats]:
    """Least squares for the scale of given centred codes -> (scale, squared error removed)."""
    product = np.einsum("...i,...i->...", w, centred)
    square = np.einsum("...i,...i->...", centred, centred)
    scale = np.divide(product, square, out=np.zeros_like(product), where=square > 0)
    return scale, scale * product


def _search_symmetric(w: Floats, scheme: Scheme) -> tuple[Floats, None]:
    start = _largest(w) / -np.float32(scheme.zero)
    _check_scales(start)
    best = np.zeros_like(start)
    best_gain = np.full_like(start, -1)
    centred = np.empty_like(w)
    for fraction in _sweep(scheme):
        np.multiply(w, _inverse(start * fraction)[..., None], out=centred)
        np.rint(centred, out=centred)
        np.clip(centred, -scheme.zero, scheme.zero - 1, out=centred)
        scale, gain = _refit(w, centred)
        better = gain > best_gain
        best_gain[better], best[better] = gain[better], scale[better]
    return best, None


def _search_asymmetric(w: Floats, scheme: Scheme) -> tuple[Floats, Floats]:
    low, high = _range(w)
    start = (high - low) / np.float32(scheme.max_code)
    _check_scales(start)
    best, best_zero = np.zeros_like(start), np.zeros_like(start)
    best_gain = np.full_like(start, -1)
    for fraction in _sweep(scheme):
        inverse = _inverse(start * fraction)
        zero = np.clip(np.rint(-low * fraction * inverse), 0, scheme.max_code)
        centred = np.rint(w * inverse[..., None])
        np.clip(centred, -zero[..., None], (scheme.max_code - zero)[..., None], out=centred)
        scale, gain = _refit(w, centred)
        better = gain > best_gain
        best_gain[better], best[better], best_zero[better] = (
            gain[better],
            scale[better],
            zero[better],
        )
    return best, best_zero


def _trim(scales: Floats, bits: int) -> Floats:
    """Round to `bits` significant bits: float16 has 11, the codes need 3 (±8) or 4 (±15)."""
    mantissa, exponent = np.frexp(scales)
    steps = np.float32(1 << bits)
    return np.ldexp(np.rint(mantissa * steps) / steps, exponent)


def _keep_constant_groups(
    weights: Floats, scales: Floats, zeros: Floats | None, scheme: Scheme
) -> tuple[Floats, Floats | None]:
    """Give groups of one repeated value the value itself as scale: code zero + 1, no rounding."""
    w = grouped(weights, scheme, "edge")
    first = w[..., 0]
    constant = (w == first[..., None]).all(-1)
    scales = np.where(constant, first, scales)
    if zeros is not None:
        zeros = np.where(constant, np.float32(scheme.zero), zeros)
    return scales, zeros
