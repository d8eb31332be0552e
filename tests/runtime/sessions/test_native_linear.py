"""The native matrix kernels: every instruction set that runs here, against NumPy in float64.

All of them must also agree bit for bit with the portable ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.convert.formats.native.linear_layout import (
    KINDS,
    LinearLayout,
    pack_linear,
    unpack_linear,
)
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import WHOLE_ROW, Floats

native = pytest.importorskip("dsconv.runtime._native", reason="the native engine is not built")

PRECISIONS = {"int8": 0, "mixed": 1, "int16": 2, "own": 4}
INDEPENDENT = ("int8", "int16", "own")  # of the tokens beside one
KERNELS = native.available_kernels()
MANY = 19  # tokens of a prompt: some kernels treat more than 8 in another way
SCHEMES = [
    *(
        IntegerScheme(bits, size, symmetric)
        for bits in (4, 8)
        for size in (16, 32, 64, 128, WHOLE_ROW)
        for symmetric in (True, False)
    ),
    *(ScaleMin(bits) for bits in (3, 4, 5, 6)),
]
WIDE_SCHEMES = [scheme for scheme in SCHEMES if scheme.group_size in (128, WHOLE_ROW)]
DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
NAMES = [*map(str, SCHEMES), *map(str, DTYPES)]
# Rows and columns: whole blocks, a part of a block, odd numbers, ragged groups, one single weight.
SHAPES = [(64, 256), (48, 128), (17, 200), (5, 7), (1, 1), (33, 1100), (16, 90)]


@dataclass(frozen=True)
class Packed:
    layout: LinearLayout
    data: bytes
    weights: NDArray[np.float64]

    @property
    def fields(self) -> tuple[int, int, int, int, bool]:
        layout = self.layout
        return (KINDS[layout.kind], layout.rows, layout.cols, layout.group_size, layout.zero_points)


def packed(matrix: object) -> Packed:
    if isinstance(matrix, np.ndarray):
        weights = matrix.astype(np.float64)
    else:
        weights = matrix.dequantize().astype(np.float64)
    return Packed(LinearLayout.of(matrix), pack_linear(matrix).tobytes(), weights)


def random_weights(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def made(scheme: object, rows: int, columns: int, seed: int = 0) -> Packed:
    weights = random_weights(rows, columns, seed)
    if isinstance(scheme, np.dtype):
        return packed(weights.astype(scheme))
    return packed(scheme.round_to_nearest(weights))


def multiply(
    kernels: str,
    matrix: Packed,
    x: Floats,
    precision: str,
    bias: Floats | None = None,
    out: Floats | None = None,
    splits: tuple[int, ...] = (),
) -> Floats:
    """-> [tokens, rows]; `out` is added if given. splits: where blocks are cut into calls."""
    tokens, rows = len(x), matrix.layout.rows
    result = bytearray(tokens * rows * 4) if out is None else bytearray(out.tobytes())
    cuts = [0, *splits, matrix.layout.blocks]
    for first, last in pairwise(cuts):
        native.linear(
            kernels,
            *matrix.fields,
            matrix.data,
            PRECISIONS[precision],
            tokens,
            np.ascontiguousarray(x).tobytes(),
            b"" if bias is None else bias.tobytes(),
            result,
            out is not None,
            first,
            last,
        )
    return np.frombuffer(result, np.float32).reshape(tokens, rows)


def error_bound(matrix: Packed, x: Floats, precision: str) -> NDArray[np.float64]:
    """What rounding of activations and of float sums can amount to [tokens, rows]."""
    weights = np.abs(matrix.weights)
    columns = x.shape[1]
    size = 32 if matrix.layout.group_size % 32 == 0 else 16
    if precision in ("mixed", "own") and matrix.layout.group_size % 128 == 0:
        size = 128
    padding = -columns % size
    largest = np.abs(np.pad(x, ((0, 0), (0, padding)))).reshape(len(x), -1, size).max(-1)
    steps = np.repeat(largest, size, axis=1)[:, :columns].astype(np.float64)
    if matrix.layout.kind in ("float16", "bfloat16"):
        steps *= 0
    # Half a step, and with two terms one more where the lower one of -128 becomes -127.
    steps *= {"int8": 0.5 / 127, "mixed": 1.5 / 127, "own": 1.5 / 127, "int16": 1.5 / 32512}[
        precision
    ]
    steps *= 1.0001
    # Beside x * w sums hold x * scale * zero, or x * minimum, of the same order as the codes allow.
    magnitude = 2.0**-22 * (columns / 32 + 4) * 40
    return steps @ weights.T + magnitude * (np.abs(x).astype(np.float64) @ weights.T + 1e-30)


def check(kernels: str, matrix: Packed, x: Floats, precision: str) -> None:
    got = multiply(kernels, matrix, x, precision)
    expected = x.astype(np.float64) @ matrix.weights.T
    error = np.abs(got - expected)
    assert (error <= error_bound(matrix, x, precision) + 1e-6 * np.abs(x).max()).all()
    portable = multiply("scalar", matrix, x, precision)
    np.testing.assert_array_equal(got.view(np.int32), portable.view(np.int32))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scheme", [*SCHEMES, *DTYPES], ids=NAMES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_products(kernels: str, scheme: object, precision: str) -> None:
    random = np.random.default_rng(1)
    for rows, columns in SHAPES:
        matrix = made(scheme, rows, columns)
        for tokens in (1, 3, MANY):
            x = random.standard_normal((tokens, columns)) * np.exp(random.normal(size=columns))
            check(kernels, matrix, x.astype(np.float32), precision)


@pytest.mark.parametrize("rows", [1, 40, 112])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("scheme", WIDE_SCHEMES, ids=str)
def test_loud_channels_in_wide_groups(scheme: IntegerScheme, kernels: str, rows: int) -> None:
    """Some units have two terms; blocks come by three, two and one; a last group is ragged."""
    random = np.random.default_rng(4)
    for columns in (256, 488, 72):
        matrix = made(scheme, rows, columns)
        x = random.standard_normal((19, columns)).astype(np.float32)
        x[:, random.choice(columns, 4)] *= 100
        x[3] *= 1e-20
        check(kernels, matrix, x, "mixed")


@pytest.mark.parametrize("scheme", [SCHEMES[2], SCHEMES[13], SCHEMES[-1], DTYPES[1]], ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
def test_numbers_of_tokens(kernels: str, scheme: object) -> None:
    matrix = made(scheme, 40, 160)
    random = np.random.default_rng(2)
    for tokens in (*range(1, 10), 15, 64, 67):
        x = random.standard_t(3, (tokens, 160)).astype(np.float32)
        for precision in PRECISIONS:
            check(kernels, matrix, x, precision)


@pytest.mark.parametrize("precision", INDEPENDENT)
@pytest.mark.parametrize("scheme", [*SCHEMES, *DTYPES], ids=NAMES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_token_does_not_depend_on_its_neighbours(
    kernels: str, scheme: object, precision: str
) -> None:
    """Whatever number of them there is, wherever it stands, and however loud the others are."""
    random = np.random.default_rng(3)
    rows, columns = 40, 456
    matrix = made(scheme, rows, columns)
    x = random.standard_t(2, (67, columns)).astype(np.float32)
    x[::5, random.choice(columns, 3)] *= 50
    x[7] = 0
    portable = [multiply("scalar", matrix, x[t : t + 1], precision) for t in range(len(x))]
    alone = np.concatenate(portable).view(np.int32)
    for tokens in (*range(1, 11), 12, 15, 16, 17, 20, 24, 25, 31, 32, 33, 48, 67):
        first = int(random.integers(0, len(x) - tokens + 1))
        together = multiply(kernels, matrix, x[first : first + tokens], precision)
        np.testing.assert_array_equal(together.view(np.int32), alone[first : first + tokens])


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_split_of_blocks_changes_nothing(kernels: str) -> None:
    for scheme in (IntegerScheme(4, 64), ScaleMin(3), np.dtype(np.float16)):
        matrix = made(scheme, 150, 96)
        for tokens in (5, MANY):
            x = random_weights(tokens, 96, seed=4)
            whole = multiply(kernels, matrix, x, "int8")
            for splits in ((1,), (3, 4), tuple(range(1, 10))):
                cut = multiply(kernels, matrix, x, "int8", splits=splits)
                np.testing.assert_array_equal(whole.view(np.int32), cut.view(np.int32))


@pytest.mark.parametrize(
    "scheme", [IntegerScheme(4, 128), IntegerScheme(8, WHOLE_ROW), ScaleMin(4)], ids=str
)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_long_prompt(kernels: str, scheme: object) -> None:
    """More tokens, inputs and blocks than kernels take at once, none of them a whole number."""
    matrix = made(scheme, 150, 1100)
    check(kernels, matrix, random_weights(283, 1100, seed=8), "mixed")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("tokens", [3, MANY])
def test_bias_then_what_is_there(kernels: str, tokens: int) -> None:
    matrix = made(IntegerScheme(8, 32), 21, 64)
    x, there = random_weights(tokens, 64, seed=5), random_weights(tokens, 21, seed=6)
    bias = random_weights(1, 21, seed=7)[0]
    plain = multiply(kernels, matrix, x, "int16")
    both = multiply(kernels, matrix, x, "int16", bias, there)
    np.testing.assert_array_equal(both, (plain + bias) + there)
    np.testing.assert_array_equal(multiply(kernels, matrix, x, "int16", bias), plain + bias)


def extreme(bits: int, size: int, code: int, zero: int | None, columns: int) -> Packed:
    rows, groups = 16, IntegerScheme(bits, size).groups(columns)
    scheme = IntegerScheme(bits, size, zero is None)
    zeros = None if zero is None else np.full((rows, groups), zero, np.uint8)
    codes = np.full((rows, columns), code, np.uint8)
    return packed(IntegerMatrix(codes, np.ones((rows, groups), np.float16), zeros, scheme))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sign", [1, -1, 0])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kernels", KERNELS)
def test_extreme_codes_are_exact(kernels: str, bits: int, sign: int, precision: str) -> None:
    """Activations that are whole steps lose nothing; sums must not saturate anywhere."""
    last = (1 << bits) - 1
    columns = 256
    x = np.full((9, columns), 127.0, np.float32)
    x *= sign if sign else np.where(np.arange(columns) % 2, -1, 1)
    for size in (32, 128, WHOLE_ROW):
        for code in (0, last):
            for zero in (None, 0, last):
                matrix = extreme(bits, size, code, zero, columns)
                got = multiply(kernels, matrix, x, precision)
                np.testing.assert_array_equal(got, x.astype(np.float64) @ matrix.weights.T)


@pytest.mark.parametrize("kernels", KERNELS)
def test_low_terms_at_their_ends(kernels: str) -> None:
    """Two-term activations whose low terms are -127 to 127, with the largest codes."""
    steps = np.arange(-32512, 32513, 127)
    columns = -(-len(steps) // 32) * 32
    x = np.zeros((1, columns), np.float32)
    x[0, : len(steps)] = steps
    x.reshape(-1, 32)[:, 0] = 32512  # the step of every group is 1
    x.reshape(-1, 32)[:, 1::7] = 127
    x.reshape(-1, 32)[:, 2::7] = -127 - 256
    for code in (0, 255):
        matrix = extreme(8, 32, code, None, columns)
        got = multiply(kernels, matrix, x, "int16")
        expected = x.astype(np.float64) @ matrix.weights.T
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        portable = multiply("scalar", matrix, x, "int16")
        np.testing.assert_array_equal(got.view(np.int32), portable.view(np.int32))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zero(kernels: str, scheme: IntegerScheme | ScaleMin) -> None:
    matrix = packed(scheme.round_to_nearest(np.zeros((20, 96), np.float32)))
    x = random_weights(4, 96, seed=8)
    assert not multiply(kernels, matrix, x, "int8").any()
    matrix = made(scheme, 20, 96)
    assert not multiply(kernels, matrix, np.zeros((4, 96), np.float32), "mixed").any()
    tiny = np.full((2, 96), 1e-38, np.float32)  # below what activations resolve
    assert not multiply(kernels, matrix, tiny, "int16").any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_values_that_are_not_finite_are_not_hidden(kernels: str, precision: str) -> None:
    matrix = made(IntegerScheme(4, 32), 20, 96)
    for value in (np.nan, np.inf, -np.inf):
        x = random_weights(10, 96, seed=9)
        x[4, 50] = value
        got = multiply(kernels, matrix, x, precision)
        assert np.isnan(got[4]).all()
        assert np.isfinite(np.delete(got, 4, axis=0)).all()


@pytest.mark.parametrize("group_size", [32, 128, WHOLE_ROW])
def test_two_terms_where_they_matter_lower_the_error(group_size: int) -> None:
    random = np.random.default_rng(10)
    matrix = made(IntegerScheme(4, group_size), 64, 512)
    x = random.standard_normal((16, 512)).astype(np.float32)
    x[:, 100] *= 60  # one loud channel, as in real activations
    expected = x.astype(np.float64) @ matrix.weights.T
    errors = {
        precision: float(np.square(multiply("scalar", matrix, x, precision) - expected).mean())
        for precision in PRECISIONS
    }
    assert errors["mixed"] < errors["int8"] / 10
    assert errors["own"] < errors["int8"] / 10
    assert errors["int16"] < min(errors["mixed"], errors["own"])


@pytest.mark.parametrize("scheme", [*SCHEMES, *DTYPES], ids=NAMES)
def test_rows_and_layout(scheme: object) -> None:
    for rows, columns in SHAPES:
        weights = random_weights(rows, columns)
        if isinstance(scheme, np.dtype):
            matrix: object = weights.astype(scheme)
        else:
            matrix = scheme.round_to_nearest(weights)
        whole = packed(matrix)
        assert native.linear_bytes(*whole.fields) == whole.layout.size == len(whole.data)
        for row in {0, rows // 2, rows - 1}:
            values = np.frombuffer(
                native.dequantize_row(*whole.fields, whole.data, row), np.float32
            )
            np.testing.assert_array_equal(values, whole.weights[row].astype(np.float32))
        back = unpack_linear(np.frombuffer(whole.data, np.uint8), whole.layout)
        assert packed(back).data == whole.data
        np.testing.assert_array_equal(packed(back).weights, whole.weights)


def test_slices_of_rows_follow_one_another() -> None:
    quantized = ScaleMin(5).round_to_nearest(random_weights(50, 70))
    assert isinstance(quantized, ScaleMinMatrix)

    def rows(part: slice) -> ScaleMinMatrix:
        names = ("codes", "scale_steps", "minimum_steps", "super_scales", "super_minima")
        return replace(quantized, **{name: getattr(quantized, name)[part] for name in names})

    parts = [pack_linear(rows(slice(0, 32))), pack_linear(rows(slice(32, 50)))]
    np.testing.assert_array_equal(np.concatenate(parts), pack_linear(quantized))


@pytest.mark.parametrize(
    "fields",
    [
        (4, 0, 64, 32, False),
        (4, 16, 0, 32, False),
        (4, -16, 64, 32, False),
        (4, 16, 64, -1, False),
        (4, 16, 64, 24, False),
        (4, 16, 1 << 20, 0, False),  # the sum of such a group does not fit int32
        (4, 1 << 40, 64, 32, False),
        (4, 16, 1 << 62, 32, False),
        (5, 16, 64, 32, False),
        (0, 16, 64, 32, False),
        (34, 16, 64, 0, False),
    ],
)
def test_descriptions_that_are_no_matrix(fields: tuple[int, int, int, int, bool]) -> None:
    assert native.linear_bytes(*fields) == 0


def test_bytes_that_do_not_fit() -> None:
    matrix = made(IntegerScheme(4, 32), 16, 64)
    with pytest.raises(ValueError, match="bytes where"):
        native.dequantize_row(*matrix.fields, matrix.data[:-1], 0)
