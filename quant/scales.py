"""The scale (and zero point) of every group: by the largest weight, or searched.

The search tries candidates around the largest weight's own scale; for each one the codes are
rounded and the scale is refitted to them by least squares; the smallest squared error wins. (The
idea of llama.cpp's k-quants; with codes c, weights w and importances i the best scale is
Σiwc/Σic², and it leaves the error Σiw² - (Σiwc)²/Σic².)

Groups whose weights are all equal stay exact as far as float16 holds the value: code zero ± 1.

4-bit scales found by search keep so few significant bits that scale * (code - zero) is exact in
float16: a runtime that unpacks to float16 then computes with the very weights that were verified.
It costs 0.03 % (symmetric) or 0.15 % (asymmetric) of the squared error on normal weights.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .schemes import WHOLE_ROW, Floats, Scheme

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
    size = scheme.group_length(columns)
    padding = groups * size - columns
    if padding:
        weights = np.pad(weights, ((0, 0), (0, padding)), padding_mode)
    return weights.reshape(rows, groups, size)


def plain_scales(weights: Floats, scheme: Scheme) -> tuple[Floats, Floats | None]:
    """-> (scales, zeros or None) [rows, groups] that map the largest weight onto the last code."""
    w = grouped(weights, scheme)
    if scheme.symmetric:
        return _largest(w) / -np.float32(scheme.zero), None
    low, high = _range(w)
    scales = (high - low) / np.float32(scheme.max_code)
    zeros: Floats = np.clip(np.rint(-low * inverse(scales)), 0, scheme.max_code)
    return _keep_constant_groups(weights, scales, zeros, scheme)


def searched_scales(
    weights: Floats, scheme: Scheme, importance: Floats | None = None
) -> tuple[Floats, Floats | None]:
    """-> (scales, zeros or None) [rows, groups] of the smallest squared error.

    The scales are those that float16 will hold, so codes can be fitted to them.

    Args:
        importance: weight of each column's squared error [columns]; None counts all alike.

    Raises:
        ScaleOverflow: a scale does not fit float16.
    """
    w = grouped(weights, scheme)
    weighted = None if importance is None else grouped(importance[None], scheme)
    find = _search_symmetric if scheme.symmetric else _search_asymmetric
    scales, zeros = find(w, weighted, scheme)
    if scheme.bits == 4:
        scales = _trim(scales, 8 if scheme.symmetric else 7)
    scales, zeros = _keep_constant_groups(weights, scales, zeros, scheme)
    check_scales(scales)
    return scales.astype(np.float16).astype(np.float32), zeros


def _largest(w: Floats) -> Floats:
    """[..., size] -> [...]: the value of largest magnitude; of equals the negative one."""
    low, high = w.min(-1), w.max(-1)
    largest: Floats = np.where(high > -low, high, low)
    return largest


def _range(w: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest value of each group, stretched to hold 0."""
    return np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)


def inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 for a scale of 0 (whose codes then are the zero point)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverted = np.float32(1) / scales
    return np.where(np.isfinite(inverted), inverted, np.float32(0))


def nearest_codes(w: Floats, scales: Floats, centre: Floats | np.float32, max_code: int) -> Floats:
    """Codes of `w`, with scales and zero points that broadcast against it.

    Halves go up, in onnxruntime's own order of operations: weights come from bfloat16 files, they
    lie on a grid, and ties are common.
    """
    with np.errstate(over="ignore"):
        codes: Floats = w * inverse(scales)
    codes += centre + np.float32(0.5)
    np.floor(codes, out=codes)
    return np.clip(codes, 0, max_code, out=codes)


def check_scales(scales: Floats) -> None:
    largest = float(np.abs(scales).max(initial=0.0))
    if largest > MAX_SCALE:
        raise ScaleOverflow(f"a scale of {largest:g} does not fit float16 (limit {MAX_SCALE:g})")


def _sweep(scheme: Scheme) -> Floats:
    if scheme.bits == 8:
        return SEARCH_8_BITS
    return SEARCH_4_BITS_ROW if scheme.group_size == WHOLE_ROW else SEARCH_4_BITS


def _refit(w: Floats, centred: Floats, importance: Floats | None) -> tuple[Floats, Floats]:
    """Least squares for the scale of given centred codes -> (scale, squared error removed)."""
    counted = centred if importance is None else centred * importance
    product = np.einsum("...i,...i->...", w, counted)
    square = np.einsum("...i,...i->...", centred, counted)
    scale = np.divide(product, square, out=np.zeros_like(product), where=square > 0)
    return scale, scale * product


def _search_symmetric(w: Floats, importance: Floats | None, scheme: Scheme) -> tuple[Floats, None]:
    start = _largest(w) / -np.float32(scheme.zero)
    check_scales(start)
    best = np.zeros_like(start)
    best_gain = np.full_like(start, -1)
    centred = np.empty_like(w)
    for fraction in _sweep(scheme):
        np.multiply(w, inverse(start * fraction)[..., None], out=centred)
        np.rint(centred, out=centred)
        np.clip(centred, -scheme.zero, scheme.zero - 1, out=centred)
        scale, gain = _refit(w, centred, importance)
        better = gain > best_gain
        best_gain[better], best[better] = gain[better], scale[better]
    return best, None


def _search_asymmetric(
    w: Floats, importance: Floats | None, scheme: Scheme
) -> tuple[Floats, Floats]:
    low, high = _range(w)
    start = (high - low) / np.float32(scheme.max_code)
    check_scales(start)
    best, best_zero = np.zeros_like(start), np.zeros_like(start)
    best_gain = np.full_like(start, -1)
    for fraction in _sweep(scheme):
        inverted = inverse(start * fraction)
        zero = np.clip(np.rint(-low * fraction * inverted), 0, scheme.max_code)
        centred = np.rint(w * inverted[..., None])
        np.clip(centred, -zero[..., None], (scheme.max_code - zero)[..., None], out=centred)
        scale, gain = _refit(w, centred, importance)
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
