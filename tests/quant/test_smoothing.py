"""quant/smoothing.py and quant/int8_rows.py against loops and float64."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.quant.int8_rows import quantize_rows, simulate_rows
from dsconv.quant.schemes import Floats
from dsconv.quant.smoothing import (
    ALPHAS,
    column_squares,
    fold_into_gain,
    migration_scales,
    repeat_heads,
    search_smoothing,
    share_heads,
)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loud(tokens: int, features: int) -> Floats:
    """Activations with a few loud channels."""
    values = normal(tokens, features, seed=1)
    values[:, ::17] *= 40
    return values


def squares(values: Floats) -> Floats:
    return column_squares([values])


def textbook_rows(values: Floats) -> NDArray[np.float64]:
    """Symmetric int8 per row, number by number, in float64."""
    result = np.zeros(values.shape)
    for i, row in enumerate(values.tolist()):
        scale = max(abs(value) for value in row) / 127
        for j, value in enumerate(row):
            result[i, j] = round(value / scale) * scale if scale else 0.0  # halves to even
    return result


def textbook_scales(input_squares: Floats, weight_squares: Floats, alpha: float) -> list[float]:
    pairs = list(zip(input_squares.tolist(), weight_squares.tolist(), strict=True))
    ratios = [(math.sqrt(x) / math.sqrt(w)) ** alpha if x and w else None for x, w in pairs]
    alive = [ratio for ratio in ratios if ratio is not None]
    middle = math.exp(sum(map(math.log, alive)) / len(alive)) if alive else 1.0
    return [1.0 if ratio is None else ratio / middle for ratio in ratios]


def test_rows_round_as_in_the_textbook() -> None:
    values = loud(9, 70)
    values[3] = 0
    values[4] = 2.5  # constant
    assert np.abs(simulate_rows(values) - textbook_rows(values)).max() < 1e-5
    codes, scales = quantize_rows(values)
    assert codes.dtype == np.int8
    assert scales.shape == (9, 1)
    assert not codes[3].any()
    assert scales[3] == 0
    assert (codes[4] == 127).all()
    assert np.array_equal(codes * scales, simulate_rows(values))
    assert np.array_equal(quantize_rows(-values)[0], -codes)


@pytest.mark.parametrize("largest", [1e-45, 1e-40, 3e38])
def test_rows_at_the_ends_of_float32(largest: float) -> None:
    values = np.array([[largest, -largest, 0, largest / 2]], np.float32)
    assert np.isfinite(simulate_rows(values)).all()
    assert np.abs(quantize_rows(values)[0].astype(int)).max() <= 127


def test_no_rows() -> None:
    assert simulate_rows(np.zeros((0, 8), np.float32)).shape == (0, 8)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_scales_equal_the_textbook(alpha: float) -> None:
    inputs, weights = squares(loud(50, 64)), squares(normal(30, 64, seed=2))
    inputs[5], weights[9] = 0, 0
    found = migration_scales(inputs, weights, alpha)
    assert found.dtype == np.float32
    assert found == pytest.approx(textbook_scales(inputs, weights, alpha), rel=1e-5)
    assert found[5] == found[9] == 1


def test_alpha_zero_is_the_identity() -> None:
    inputs, weights = squares(loud(50, 64)), squares(normal(30, 64))
    assert (migration_scales(inputs, weights, 0.0) == 1).all()


def test_constant_and_dead_inputs_are_left_alone() -> None:
    constant = np.full(16, 3, np.float32)
    assert (migration_scales(constant, constant, 0.5) == 1).all()
    assert (migration_scales(np.zeros(16, np.float32), constant, 0.5) == 1).all()
    assert (migration_scales(constant, np.zeros(16, np.float32), 0.5) == 1).all()


def test_half_is_the_minimum_of_the_product() -> None:
    """Σ E x²/s² · Σ s² w² is smallest at alpha ½ (Cauchy-Schwarz)."""
    inputs, weights = squares(loud(50, 64)), squares(normal(30, 64, seed=2))

    def product(scales: Floats) -> float:
        return float((inputs / scales**2).sum() * (weights * scales**2).sum())

    half = migration_scales(inputs, weights, 0.5)
    bound = float(np.sqrt(inputs * weights).sum()) ** 2
    assert product(half) == pytest.approx(bound, rel=1e-5)
    for alpha in (0.0, 0.4, 0.6, 1.0):
        assert product(migration_scales(inputs, weights, alpha)) > product(half)


def test_a_channel_quiet_on_the_calibration_text_keeps_a_bounded_scale() -> None:
    inputs, weights = squares(normal(50, 64)), squares(normal(30, 64, seed=2))
    inputs[7] = 1e-30
    scales = migration_scales(inputs, weights, 0.5)
    assert 0.05 < scales[7] < 0.2


def test_smoothing_keeps_the_function() -> None:
    samples, matrix = loud(40, 64).astype(np.float64), normal(24, 64, seed=2).astype(np.float64)
    scales = migration_scales(
        squares(samples.astype(np.float32)), squares(matrix.astype(np.float32)), 0.5
    ).astype(np.float64)
    expected = samples @ matrix.T
    assert np.abs((samples / scales) @ (matrix * scales).T - expected).max() < 1e-11


def test_search_helps_where_channels_are_loud() -> None:
    samples, matrices = loud(200, 64), [normal(24, 64, seed=2), normal(8, 64, seed=3)]
    weights = column_squares(matrices)
    found = search_smoothing(samples, matrices, squares(samples), weights)
    assert 0.3 <= found.alpha <= 0.7
    assert found.error < 0.2 * found.plain_error
    for alpha in ALPHAS:
        alone = search_smoothing(samples, matrices, squares(samples), weights, [alpha])
        assert found.error <= alone.error


def test_the_error_is_that_of_the_textbook() -> None:
    samples, matrix = loud(20, 32), normal(12, 32, seed=2)
    found = search_smoothing(samples, [matrix], squares(samples), squares(matrix), [0.5])
    expected = samples.astype(np.float64) @ matrix.T.astype(np.float64)
    energy = (expected**2).sum()
    for scales, error in (
        (np.ones(32, np.float32), found.plain_error),
        (found.scales, found.error),
    ):
        rounded = textbook_rows(samples / scales) @ textbook_rows(matrix * scales).T
        assert error == pytest.approx(((rounded - expected) ** 2).sum() / energy, rel=1e-3)


def test_search_refuses_what_does_not_help() -> None:
    """Statistics that have nothing to do with the samples."""
    samples, matrix = normal(100, 64), normal(24, 64, seed=2)
    wrong = np.exp(4 * normal(64, seed=5))
    found = search_smoothing(samples, [matrix], wrong, squares(matrix))
    assert found.alpha == 0
    assert (found.scales == 1).all()
    assert found.error == found.plain_error


def test_search_on_silence() -> None:
    samples, matrix = np.zeros((10, 32), np.float32), normal(8, 32)
    found = search_smoothing(samples, [matrix], squares(samples), squares(matrix))
    assert (found.alpha, found.error, found.plain_error) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_folded_gain_is_exact_in_its_type(dtype: type) -> None:
    gain = (normal(64) * 3).astype(dtype).astype(np.float32)
    gain[3] = 0
    scales = np.exp(normal(64, seed=1))
    stored, exact = fold_into_gain(gain, scales, dtype)
    assert np.array_equal(stored.astype(dtype).astype(np.float32), stored)
    assert np.abs(stored.astype(np.float64) * exact - gain).max() < 3e-7 * np.abs(gain).max()
    assert exact == pytest.approx(np.where(gain == 0, 1, scales), rel=2**-8)
    assert (exact > 0).all()


def test_a_gain_that_does_not_fit_its_type_stays() -> None:
    gain, scales = np.array([6e4, 1e-7, 1], np.float32), np.array([0.1, 100, 2], np.float32)
    stored, exact = fold_into_gain(gain, scales, np.float16)
    assert stored == pytest.approx(np.array([6e4, 1e-7, 0.5], np.float32))
    assert np.array_equal(exact, np.array([1, 1, 2], np.float32))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (5, 1)])
def test_value_and_output_share_scales_across_query_heads(heads: int, kv_heads: int) -> None:
    """Attention probabilities mix tokens, not channels: v / s, then o * s, gives the same."""
    size, tokens = 8, 12
    values = normal(tokens, kv_heads * size).astype(np.float64)
    output = normal(20, heads * size, seed=2).astype(np.float64)
    probabilities = np.exp(normal(heads, tokens, tokens, seed=3).astype(np.float64))

    def attend(value: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = []
        for head in range(heads):
            source = head // (heads // kv_heads)
            parts.append(probabilities[head] @ value[:, source * size : (source + 1) * size])
        return np.concatenate(parts, axis=1)

    attended = attend(values)
    shared = migration_scales(
        share_heads(squares(attended.astype(np.float32)), heads, kv_heads),
        share_heads(squares(output.astype(np.float32)), heads, kv_heads),
        0.5,
    )
    assert shared.shape == (kv_heads * size,)
    repeated = repeat_heads(shared, heads, kv_heads).astype(np.float64)
    smoothed = attend(values / shared) @ (output * repeated).T
    expected = attended @ output.T
    assert np.abs(smoothed - expected).max() < 1e-11 * np.abs(expected).max()
    assert not np.allclose(shared, 1)


def test_share_heads_takes_the_mean_over_consecutive_heads() -> None:
    given = np.arange(12, dtype=np.float32)  # 4 heads of 3 channels, 2 value heads
    assert share_heads(given, 4, 2).tolist() == [1.5, 2.5, 3.5, 7.5, 8.5, 9.5]
    again = repeat_heads(share_heads(given, 4, 2), 4, 2)
    assert again.tolist() == [1.5, 2.5, 3.5] * 2 + [7.5, 8.5, 9.5] * 2


def test_rows_of_the_map_before_take_the_scales_for_free() -> None:
    """Per-row codes do not change when a row is divided: only its scale does."""
    matrix = normal(16, 40)
    scales: Floats = np.exp(normal(16, 1, seed=1))
    codes, steps = quantize_rows(matrix)
    codes_after, steps_after = quantize_rows(np.divide(matrix, scales, dtype=np.float32))
    assert np.abs(codes.astype(int) - codes_after).max() <= 1  # ties may fall either way
    assert (codes == codes_after).mean() > 0.99
    assert steps_after == pytest.approx(steps / scales, rel=1e-6)
