"""quant/scale_min.py against slow twins, and pack_bits against Python's big integers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.errors import UsageError
from dsconv.quant.packing import pack_bits, unpack_bits
from dsconv.quant.scale_min import BITS, MAX_STEP, ScaleMin, ScaleMinMatrix
from dsconv.quant.scales import ScaleOverflow
from dsconv.quant.schemes import METHODS

# Rows of one short super-block, of equal parts with a rest, of part groups, of llama.cpp's own.
COLUMNS = [1, 32, 70, 512, 576, 896, 1100]
SCHEMES = [ScaleMin(bits) for bits in BITS]
KINDS = [
    "normal",
    "heavy",
    "positive",
    "negative",
    "sparse",
    "two values",
    "constant",
    "negative constant",
    "tiny",
    "subnormal",
]


def matrix(kind: str, columns: int, rows: int = 24, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    shape = (rows, columns)
    normal = random.standard_normal(shape)
    made = {
        "normal": normal,
        "heavy": random.standard_t(2, shape),
        "positive": np.abs(normal) + 1,
        "negative": -np.abs(normal) - 1,
        "sparse": normal * (random.random(shape) < 0.05),
        "two values": np.where(normal < 0, -1, 1),
        "constant": np.full(shape, 0.3),
        "negative constant": np.full(shape, -0.3),
        "tiny": normal * 1e-5,
        "subnormal": normal * 1e-7,
    }
    return made[kind].astype(np.float32)


def importances(columns: int) -> NDArray[np.float32]:
    return np.exp(2 * np.random.default_rng(9).standard_normal(columns)).astype(np.float32)


def dequantize_slowly(quantized: ScaleMinMatrix) -> NDArray[np.float64]:
    """Weight by weight, from the definition."""
    rows, columns = quantized.codes.shape
    groups = -(-columns // 32)
    size = -(-groups // max(1, groups // 8))
    result = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            group = column // 32
            block = group // size
            scale = float(quantized.super_scales[row, block]) * int(
                quantized.scale_steps[row, group]
            )
            minimum = float(quantized.super_minima[row, block]) * int(
                quantized.minimum_steps[row, group]
            )
            result[row, column] = scale * int(quantized.codes[row, column]) - minimum
    return result


def squared_errors(
    quantized: ScaleMinMatrix,
    weights: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Of every super-block [rows, super-blocks]."""
    errors = np.square(quantized.dequantize().astype(np.float64) - weights)
    if importance is not None:
        errors *= importance
    width = 32 * quantized.scheme.super_size(weights.shape[1])
    parts = [errors[:, start : start + width] for start in range(0, weights.shape[1], width)]
    return np.stack([part.sum(1) for part in parts], 1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("method", METHODS)
def test_a_weight_is_scale_times_code_minus_minimum(
    scheme: ScaleMin, columns: int, method: str
) -> None:
    weights = matrix("normal", columns, rows=3)
    found = METHODS[method](weights, scheme)
    assert isinstance(found, ScaleMinMatrix)
    np.testing.assert_allclose(found.dequantize(), dequantize_slowly(found), rtol=0, atol=1e-6)
    step = np.repeat(found.grid.scales, 32, 1)[:, :columns]
    nearest = np.abs(found.dequantize() - weights) <= 0.51 * step
    inside = (found.codes > 0) & (found.codes < scheme.max_code)
    assert nearest[inside].all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_types_and_shapes_are_those_of_the_format(scheme: ScaleMin, columns: int) -> None:
    found = scheme.search(matrix("normal", columns))
    assert isinstance(found, ScaleMinMatrix)
    groups = -(-columns // 32)
    assert found.codes.dtype == found.scale_steps.dtype == found.minimum_steps.dtype == np.uint8
    assert found.super_scales.dtype == found.super_minima.dtype == np.float16
    assert found.codes.shape == (24, columns)
    assert found.scale_steps.shape == found.minimum_steps.shape == (24, groups)
    assert found.super_scales.shape == found.super_minima.shape
    assert found.super_scales.shape == (24, scheme.super_blocks(columns))
    assert found.codes.max() <= scheme.max_code
    assert max(found.scale_steps.max(), found.minimum_steps.max()) <= MAX_STEP
    assert (found.super_scales >= 0).all()
    assert (found.super_minima >= 0).all()


@pytest.mark.parametrize(
    ("columns", "size", "blocks"),
    [(70, 3, 1), (576, 9, 2), (896, 10, 3), (256, 8, 1), (1536, 8, 6), (480, 15, 1), (1, 1, 1)],
)
def test_super_blocks_have_8_to_15_groups(columns: int, size: int, blocks: int) -> None:
    assert ScaleMin(4).super_size(columns) == size
    assert ScaleMin(4).super_blocks(columns) == blocks


def test_every_row_of_at_least_8_groups_is_split_into_8_to_15() -> None:
    for groups in range(8, 700):
        assert 8 <= ScaleMin(4).super_size(groups * 32) <= 15
        assert ScaleMin(4).super_blocks(groups * 32) <= groups // 8
    assert all(ScaleMin(4).super_size(columns) == 8 for columns in range(256, 20_000, 256))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [70, 512, 896])
def test_search_is_never_worse_than_rounding(scheme: ScaleMin, columns: int, kind: str) -> None:
    weights = matrix(kind, columns)
    for importance in (None, importances(columns)):
        found, rounded = scheme.search(weights, importance), scheme.round_to_nearest(weights)
        assert isinstance(found, ScaleMinMatrix)
        assert isinstance(rounded, ScaleMinMatrix)
        limit = squared_errors(rounded, weights, importance) * (1 + 1e-5) + 1e-30
        assert (squared_errors(found, weights, importance) <= limit).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [512, 896])
def test_search_gains_what_it_is_there_for(scheme: ScaleMin, columns: int) -> None:
    weights, importance = matrix("normal", columns, rows=128), importances(columns)
    for weighted, limit in ((None, 0.92), (importance, 0.7)):
        losses = [
            squared_errors(quantized, weights, weighted).sum()  # type: ignore[arg-type]
            for quantized in (scheme.search(weights, weighted), scheme.round_to_nearest(weights))
        ]
        assert losses[0] < limit * losses[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [70, 512])
def test_zero_groups_stay_zero(scheme: ScaleMin, columns: int, method: str) -> None:
    weights = matrix("normal", columns)
    weights[:, 32:64] = 0
    weights[3] = 0
    found = METHODS[method](weights, scheme).dequantize()
    assert (found[:, 32:64] == 0).all()
    assert (found[3] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["constant", "negative constant"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [70, 512])
def test_constant_rows_are_met_up_to_the_unit(
    scheme: ScaleMin, columns: int, kind: str, method: str
) -> None:
    """Units of rows that are no multiple of 256 have 5 bits: half a step of 63 is 1/60."""
    weights = matrix(kind, columns)
    limit = 0.3 * (1 / 1000 if columns == 512 else 1 / 60)
    assert np.abs(METHODS[method](weights, scheme).dequantize() - weights).max() <= limit


@pytest.mark.parametrize("value", [0.3, -0.3])
def test_importance_does_not_hurt_constant_groups(value: float) -> None:
    weights = matrix("normal", 512)
    weights[:, 64:96] = value
    found = ScaleMin(4).search(weights, importances(512)).dequantize()
    assert np.abs(found[:, 64:96] - value).max() < 0.04


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_positive_groups_have_no_minimum(scheme: ScaleMin) -> None:
    found = scheme.round_to_nearest(matrix("positive", 512))
    assert isinstance(found, ScaleMinMatrix)
    assert (found.minimum_steps == 0).all()
    assert (found.super_minima == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weights_too_large_for_float16_are_refused(
    scheme: ScaleMin, sign: int, method: str
) -> None:
    weights = matrix("normal", 70)
    weights[2, 3] = sign * 1e30
    with pytest.raises(ScaleOverflow, match="does not fit float16"):
        METHODS[method](weights, scheme)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(
    ("size", "limit"), [(1e-5, 0.25), (1e-6, 0.3), (1e-7, 5.0), (1e-30, 1.0), (1e-45, 1.0)]
)
def test_tiny_weights_stay_finite_and_close(
    scheme: ScaleMin, size: float, limit: float, method: str
) -> None:
    weights = (matrix("normal", 512) * size).astype(np.float32)
    found = METHODS[method](weights, scheme).dequantize()
    assert np.isfinite(found).all()
    largest = np.abs(weights).max()
    assert np.abs(found - weights).max() <= max(limit * largest, 64 * 2.0**-24)


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 0.02, 1.0, 100.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [70, 576, 896])
def test_scales_and_minima_are_float16_numbers_where_gguf_stores_them(
    columns: int, method: str, scale: float
) -> None:
    weights = matrix("heavy", columns, rows=64) * np.float32(scale)
    found = METHODS[method](weights, ScaleMin(4))
    assert isinstance(found, ScaleMinMatrix)
    for unit in (found.super_scales, found.super_minima):
        mantissa, _ = np.frexp(unit.astype(np.float64))
        assert (mantissa * 32 % 1 == 0).all()
    for values in (found.grid.scales, found.grid.minima):
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [70, 512])
def test_rows_do_not_depend_on_their_neighbours(method: str, columns: int) -> None:
    weights = matrix("heavy", columns)
    whole = METHODS[method](weights, ScaleMin(4)).dequantize()
    parts = [METHODS[method](weights[i : i + 5], ScaleMin(4)).dequantize() for i in range(0, 24, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_input_is_left_alone(method: str) -> None:
    weights = matrix("normal", 70)
    before = weights.copy()
    METHODS[method](weights, ScaleMin(4))
    np.testing.assert_array_equal(weights, before)


def test_only_the_size_relative_to_each_other_matters_of_importances() -> None:
    weights, importance = matrix("normal", 512), importances(512)
    found = [ScaleMin(4).search(weights, importance * f).dequantize() for f in (1, 2.0**-60)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("bits", [0, 2, 7, 8, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"bits: {bits} is not supported"):
        ScaleMin(bits)


def pack_slowly(values: list[int], bits: int) -> bytes:
    """One big integer, the first value lowest."""
    number = sum(value << (index * bits) for index, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 31, 32, 35, 100])
def test_packed_bits_are_a_big_integer(bits: int, count: int) -> None:
    random = np.random.default_rng(bits * 1000 + count)
    values = random.integers(0, 1 << bits, (5, count), dtype=np.uint8)
    values[0] = (1 << bits) - 1
    packed = pack_bits(values, bits)
    assert packed.dtype == np.uint8
    assert [row.tobytes() for row in packed] == [pack_slowly(v, bits) for v in values.tolist()]
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), values)
