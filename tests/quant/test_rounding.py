"""Rounding, packing and schemes against slow textbook twins, brute force and compressed-tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
    unpack_from_int32,
)
from numpy.typing import NDArray

from dsconv.errors import UsageError
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.packing import (
    pack_rows,
    pack_zero_points,
    packed_row_bytes,
    unpack_rows,
    unpack_zero_points,
)
from dsconv.quant.scales import ScaleOverflow
from dsconv.quant.schemes import METHODS, Floats

SCHEMES = [
    IntegerScheme(bits, group, symmetric)
    for bits, group, symmetric in itertools.product((4, 8), (32, 64, 128, -1), (True, False))
]
EVERY_SCHEME = pytest.mark.parametrize(
    "scheme", SCHEMES, ids=lambda s: f"{s.bits}b-g{s.group_size}-{'sym' if s.symmetric else 'asym'}"
)
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def normal(rows: int, columns: int, seed: int = 0, scale: float = 0.02) -> Floats:
    """Weights as in a model, with a few outliers."""
    chance = np.random.default_rng(seed)
    weights = chance.normal(0, scale, (rows, columns))
    weights[chance.random((rows, columns)) < 0.01] *= 8
    return weights.astype(np.float32)


def groups_of(row: Any, scheme: IntegerScheme) -> list[list[float]]:
    """A row cut into groups, the last one shorter; no padding."""
    values = [float(value) for value in row]
    size = len(values) if scheme.group_size == -1 else scheme.group_size
    return [values[start : start + size] for start in range(0, len(values), size)]


def squared_error(weights: Floats, quantized: IntegerMatrix) -> float:
    return float(((weights.astype(np.float64) - quantized.dequantize()) ** 2).sum())


# ---------------------------------------------------------------- textbook rounding


def textbook_scale_and_zero(group: list[float], scheme: IntegerScheme) -> tuple[float, int]:
    if scheme.symmetric:
        largest = max(group, key=abs)
        return largest / -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1)
    low, high = min(0.0, *group), max(0.0, *group)
    scale = (high - low) / (2**scheme.bits - 1)
    return scale, round(-low / scale)


def check_codes(group: list[float], codes: list[int], scale: float, zero: int, top: int) -> None:
    """Every code is the nearest of the grid, but for ties that float32 cannot tell apart."""
    for value, code in zip(group, codes, strict=True):
        wanted = min(max(value / scale + zero, 0), top)
        assert abs(wanted - code) <= 0.5 + 1e-4, (value, scale, code)


@EVERY_SCHEME
@pytest.mark.parametrize("columns", [128, 256, 250, 33, 1, 7])
def test_round_to_nearest_is_the_textbook(scheme: IntegerScheme, columns: int) -> None:
    weights = normal(5, columns, seed=columns)
    quantized = scheme.round_to_nearest(weights)
    assert quantized.codes.shape == weights.shape
    for row in range(5):
        groups = groups_of(weights[row], scheme)
        assert quantized.scales.shape == (5, len(groups))
        codes = [int(code) for code in quantized.codes[row]]
        for index, group in enumerate(groups):
            scale, zero = textbook_scale_and_zero(group, scheme)
            stored = float(quantized.scales[row, index])
            if len(set(group)) > 1 or scheme.symmetric:
                assert stored == pytest.approx(scale, rel=2**-11 * 1.001, abs=2**-25)
                assert quantized.zeros is None or quantized.zeros[row, index] == zero
                check_codes(group, codes[: len(group)], scale, zero, scheme.max_code)
            del codes[: len(group)]


@EVERY_SCHEME
def test_dequantize_is_scale_times_centred_code(scheme: IntegerScheme) -> None:
    for columns, method in itertools.product((128, 200), METHODS.values()):
        quantized = method(normal(3, columns), scheme)
        values = quantized.dequantize()
        size = columns if scheme.group_size == -1 else scheme.group_size
        for row, column in itertools.product(range(3), range(columns)):
            zeros, group = quantized.zeros, column // size
            zero = 2 ** (scheme.bits - 1) if zeros is None else int(zeros[row, group])
            exact = float(quantized.scales[row, group]) * (int(quantized.codes[row, column]) - zero)
            assert float(values[row, column]) == exact  # a product of 11 and 8 bits: no rounding


def test_halves_go_up() -> None:
    group = [-8.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 7.5, 7.0, *[0.0] * 22]
    quantized = IntegerScheme(4, 32).round_to_nearest(np.array([group], np.float32))
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes[0, :10].tolist() == [0, 9, 10, 11, 12, 8, 7, 6, 15, 15]


def test_of_equal_magnitudes_the_negative_one_is_kept_exactly() -> None:
    weights = np.zeros((2, 32), np.float32)
    weights[0, 3:5] = 4, -4
    weights[1, 3:5] = -4, 4
    quantized = IntegerScheme(4, 32).round_to_nearest(weights)
    assert quantized.scales.tolist() == [[0.5], [0.5]]
    assert quantized.codes[:, 3:5].tolist() == [[15, 0], [0, 15]]


# ---------------------------------------------------------------- groups that must stay exact


EXACT = [0.0, 1.0, -1.0, 0.1, -0.0123, 3.3, -117.0, 1e-3, -6.2e-5, 5.9604645e-8, 3000.0]


@EVERY_METHOD
@EVERY_SCHEME
@pytest.mark.parametrize("columns", [256, 200, 40])
def test_constant_groups_stay_exact(method: str, scheme: IntegerScheme, columns: int) -> None:
    values = np.array(EXACT, np.float32).astype(ml_dtypes.bfloat16).astype(np.float16)
    weights = np.repeat(values.astype(np.float32)[:, None], columns, axis=1)
    if method == "rtn" and scheme.symmetric:  # scale = value / 8 (or 128): within float16's reach
        reach = 2.0**-14 * 2 ** (scheme.bits - 1)
        weights = weights[(np.abs(weights[:, 0]) >= reach) | (weights[:, 0] == 0)]
    np.testing.assert_array_equal(METHODS[method](weights, scheme).dequantize(), weights)


@EVERY_METHOD
@EVERY_SCHEME
def test_constant_and_zero_groups_among_others(method: str, scheme: IntegerScheme) -> None:
    weights = normal(4, 256)
    weights[1] = 0
    weights[2] = 0.4375
    weights[0, 128:] = 0
    weights[3, 128:] = -0.4375
    values = METHODS[method](weights, scheme).dequantize()
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[1:3], weights[1:3])
    np.testing.assert_array_equal(values[0, 128:], weights[0, 128:])
    if scheme.group_size != -1:
        np.testing.assert_array_equal(values[3, 128:], weights[3, 128:])


@EVERY_METHOD
@EVERY_SCHEME
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 6e-8, 1e-6])
def test_denormals_stay_finite_and_close(method: str, scheme: IntegerScheme, size: float) -> None:
    weights = normal(4, 128, scale=1.0) * np.float32(size)
    values = METHODS[method](weights, scheme).dequantize()
    assert np.isfinite(values).all()
    # Codes that fit the unrounded scale meet a stored one that is off by at most half a step.
    assert np.abs(values - weights).max() <= scheme.max_code * 2.0**-24 + np.abs(weights).max() / 4


@EVERY_METHOD
@EVERY_SCHEME
@pytest.mark.parametrize("large", [65504.0 * 256, -1e30, 3e38])
def test_scales_beyond_float16_are_refused(
    method: str, scheme: IntegerScheme, large: float
) -> None:
    weights = normal(2, 128)
    weights[1, 5] = large
    with pytest.raises(ScaleOverflow, match="does not fit float16"):
        METHODS[method](weights, scheme)
    weights[1, 5] = 65504.0
    assert np.isfinite(METHODS[method](weights, scheme).dequantize()).all()


# ---------------------------------------------------------------- search


@EVERY_SCHEME
@pytest.mark.parametrize("columns", [256, 1536, 200])
def test_search_is_never_worse_than_rounding(scheme: IntegerScheme, columns: int) -> None:
    for seed, scale in ((0, 0.02), (1, 1.0)):
        weights = normal(32, columns, seed, scale)
        plain, searched = scheme.round_to_nearest(weights), scheme.search(weights)
        for row in range(32):
            rows = slice(row, row + 1)
            before = squared_error(weights[rows], _rows(plain, rows))
            after = squared_error(weights[rows], _rows(searched, rows))
            assert after <= before * (1 + 1e-3)


def _rows(quantized: IntegerMatrix, rows: slice) -> IntegerMatrix:
    zeros = None if quantized.zeros is None else quantized.zeros[rows]
    return IntegerMatrix(quantized.codes[rows], quantized.scales[rows], zeros, quantized.scheme)


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_gains_what_it_is_there_for(symmetric: bool) -> None:
    """4 bits, groups of 32, normal weights: a tenth of the squared error goes."""
    weights = np.random.default_rng(0).normal(0, 0.02, (256, 512)).astype(np.float32)
    scheme = IntegerScheme(4, 32, symmetric)
    plain = squared_error(weights, scheme.round_to_nearest(weights))
    assert 0.8 < squared_error(weights, scheme.search(weights)) / plain < 0.92


def best_error(group: list[float], zero: int, top: int) -> float:
    """The smallest squared error of any scale: codes change only where w / s = k + 1/2."""
    borders = {w / (k + 0.5) for w in group for k in range(-top - 2, top + 2) if w}
    ends = sorted(borders)
    middles = [ends[0] * 2, ends[-1] * 2]
    middles += [(a + b) / 2 for a, b in itertools.pairwise(ends) if (a + b) / 2]
    best = math.inf
    for scale in middles:
        codes = [min(max(round(w / scale), -zero), top - zero) for w in group]
        square = sum(c * c for c in codes)
        product = sum(w * c for w, c in zip(group, codes, strict=True))
        rest = sum(w * w for w in group) - (product * product / square if square else 0.0)
        best = min(best, rest)
    return best


@pytest.mark.parametrize(("symmetric", "limit"), [(True, 1.03), (False, 1.06)])
def test_search_comes_close_to_the_best_there_is(symmetric: bool, limit: float) -> None:
    scheme = IntegerScheme(4, 32, symmetric)
    weights = np.random.default_rng(3).normal(0, 0.02, (24, 16)).astype(np.float32)
    optimum = 0.0
    for row in weights:
        group = [float(w) for w in row]
        zeros = [scheme.zero] if symmetric else range(scheme.max_code + 1)
        optimum += min(best_error(group, zero, scheme.max_code) for zero in zeros)
    found = squared_error(weights, scheme.search(weights))
    assert optimum * 0.999 <= found <= optimum * limit


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.bits == 4], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.02, 3.0, 1000.0])
def test_4_bit_values_are_float16_numbers(scheme: IntegerScheme, scale: float) -> None:
    weights = normal(64, 256, scale=scale)
    weights[5, :128] = 0.1  # constant groups keep scales of their own
    values = scheme.search(weights).dequantize()
    np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)


@EVERY_METHOD
@EVERY_SCHEME
def test_rows_do_not_depend_on_their_neighbours(method: str, scheme: IntegerScheme) -> None:
    weights = normal(16, 192)
    whole = METHODS[method](weights, scheme)
    parts = [METHODS[method](weights[start : start + 5], scheme) for start in range(0, 16, 5)]
    np.testing.assert_array_equal(whole.codes, np.concatenate([part.codes for part in parts]))
    np.testing.assert_array_equal(whole.scales, np.concatenate([part.scales for part in parts]))


@EVERY_METHOD
def test_the_input_is_left_alone(method: str) -> None:
    weights = normal(8, 96)
    before = weights.copy()
    weights.flags.writeable = False
    for scheme in SCHEMES:
        METHODS[method](weights, scheme)
    np.testing.assert_array_equal(weights, before)


# ---------------------------------------------------------------- packing


SHAPES = [(1, 1), (3, 5), (8, 32), (7, 33), (830, 545), (64, 896)]


def random_codes(shape: tuple[int, int], bits: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint8)


def as_int8(codes: NDArray[np.uint8], bits: int) -> torch.Tensor:
    """Codes as compressed-tensors holds them: signed, centred on 0."""
    return torch.from_numpy((codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_are_those_of_compressed_tensors(shape: tuple[int, int], bits: int) -> None:
    codes = random_codes(shape, bits)
    packed = pack_rows(codes, bits)
    assert packed.shape == (shape[0], packed_row_bytes(shape[1], bits))
    wanted = pack_to_int32(as_int8(codes, bits), bits)
    np.testing.assert_array_equal(packed.view(np.int32), wanted.numpy())
    np.testing.assert_array_equal(unpack_rows(packed, bits, shape[1]), codes)
    theirs = unpack_from_int32(torch.from_numpy(packed.view(np.int32)), bits, torch.Size(shape))
    assert torch.equal(theirs, as_int8(codes, bits))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_zero_points_are_those_of_compressed_tensors(
    shape: tuple[int, int], bits: int
) -> None:
    zeros = random_codes(shape, bits)
    packed = pack_zero_points(zeros, bits)
    wanted = pack_to_int32(as_int8(zeros, bits), bits, packed_dim=0)
    np.testing.assert_array_equal(packed, wanted.numpy())
    np.testing.assert_array_equal(unpack_zero_points(packed, bits, shape[0]), zeros)


def test_the_low_nibble_comes_first() -> None:
    assert pack_rows(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03, 0, 0]]


# ---------------------------------------------------------------- schemes


@pytest.mark.parametrize(
    ("group", "columns", "fallback"),
    [
        (32, 64, 32),
        (32, 32, 32),
        (128, 256, 128),
        (128, 192, 64),
        (128, 96, 32),
        (128, 48, 16),
        (64, 96, 32),
        (32, 48, 16),
        (32, 100, -1),
        (128, 90, -1),
        (32, 8, -1),
        (-1, 100, -1),
    ],
)
def test_groups_fall_back_to_a_divisor(group: int, columns: int, fallback: int) -> None:
    for bits, symmetric in itertools.product((4, 8), (True, False)):
        chosen = IntegerScheme(bits, group, symmetric).for_columns(columns)
        assert chosen == IntegerScheme(bits, fallback, symmetric)
        assert fallback == -1 or columns % fallback == 0


@pytest.mark.parametrize(("bits", "group"), [(3, 32), (16, 32), (4, 0), (4, 48), (4, -2)])
def test_schemes_that_do_not_exist(bits: int, group: int) -> None:
    with pytest.raises(UsageError, match="is not supported"):
        IntegerScheme(bits, group)


def test_groups_count_a_shorter_last_one() -> None:
    assert IntegerScheme(4, 32).groups(100) == 4
    assert IntegerScheme(4, -1).groups(100) == 1
