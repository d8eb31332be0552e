"""quant/gptq.py against a textbook GPTQ in float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.quant.gptq import NotPositiveDefinite, correction, factorize, gptq
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import Scheme

SCHEMES = [
    IntegerScheme(4, 32),
    IntegerScheme(4, 32, symmetric=False),
    IntegerScheme(4, 128),
    IntegerScheme(4, -1),
    IntegerScheme(8, 64),
    IntegerScheme(8, -1, symmetric=False),
]
SCALE_MIN = [ScaleMin(3), ScaleMin(4), ScaleMin(6)]


def inputs(columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated activations with uneven channels -> their mean outer product."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) * np.exp(random.standard_normal(columns))
    rows = random.standard_normal((8 * columns, columns)) @ mixing * 0.1
    return (rows.T @ rows / len(rows)).astype(np.float32)


def matrix(rows: int, columns: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def output_error(difference: NDArray[np.float32], second_moment: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,jk,ik->", difference, second_moment, difference))


def textbook(
    weights: NDArray[np.float32],
    second_moment: NDArray[np.float32],
    scales: NDArray[np.float32],
    minima: NDArray[np.float32],
    max_code: int,
    order: NDArray[np.intp],
    damping: float,
) -> NDArray[np.float64]:
    """Optimal brain quantization, one column after the other, with a full inverse at every step.

    scales, minima: [rows, columns]; a code stands for scale * code - minimum.
    """
    work = weights.astype(np.float64)
    damped = second_moment.astype(np.float64)
    damped += damping * np.diagonal(second_moment).mean() * np.eye(len(damped))
    result = np.zeros_like(work)
    left = list(order)
    while left:
        column = left[0]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        scale, minimum = scales[:, column], minima[:, column]
        safe = np.where(scale == 0, np.inf, scale)
        code = np.clip(np.floor((work[:, column] + minimum) / safe + 0.5), 0, max_code)
        result[:, column] = scale * code - minimum
        error = (work[:, column] - result[:, column]) / inverse[0, 0]
        work[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return result


def scales_of(found: IntegerMatrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """-> (scales, minima) of every column."""
    columns = found.codes.shape[1]
    size = columns if found.scheme.group_size == -1 else found.scheme.group_size
    scales = np.repeat(found.scales.astype(np.float32), size, 1)[:, :columns]
    if found.zeros is None:
        return scales, scales * found.scheme.zero
    return scales, scales * np.repeat(found.zeros.astype(np.float32), size, 1)[:, :columns]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_equals_the_textbook_on_its_scales(scheme: IntegerScheme) -> None:
    weights, second_moment = matrix(24, 256), inputs(256)
    factor = factorize([second_moment], scheme)
    found = gptq(weights, factor, scheme)
    assert isinstance(found, IntegerMatrix)
    expected = textbook(
        weights,
        second_moment,
        *scales_of(found),
        scheme.max_code,
        factor.blocks[0].order,
        factor.damping,
    )
    different = np.abs(found.dequantize() - expected) > 1e-6
    # float32 against float64: a code on the brink of the next may fall to either side, and what
    # follows in its row then differs by a step here and there.
    assert different.mean() < 0.01


@pytest.mark.parametrize("columns", [192, 256, 300])
@pytest.mark.parametrize("scheme", SCALE_MIN, ids=str)
def test_scale_and_minimum_equal_the_textbook_on_the_searched_grid(
    scheme: ScaleMin, columns: int
) -> None:
    weights, second_moment = matrix(24, columns), inputs(columns)
    weights[:, 64:96] = -0.3  # a scale of zero with a minimum
    factor = factorize([second_moment], scheme)
    found = gptq(weights, factor, scheme)
    wanted_grid = scheme.search(weights, factor.importance)
    assert isinstance(found, ScaleMinMatrix)
    assert isinstance(wanted_grid, ScaleMinMatrix)
    np.testing.assert_array_equal(found.grid.scales, wanted_grid.grid.scales)
    np.testing.assert_array_equal(found.grid.minima, wanted_grid.grid.minima)
    assert ((found.grid.scales[:, 2] == 0) & (found.grid.minima[:, 2] > 0)).any()
    order = np.argsort(-np.diagonal(second_moment), kind="stable")
    expected = textbook(
        weights,
        second_moment,
        np.repeat(found.grid.scales, 32, 1)[:, :columns],
        np.repeat(found.grid.minima, 32, 1)[:, :columns],
        scheme.max_code,
        order,
        factor.damping,
    )
    assert (np.abs(found.dequantize() - expected) > 1e-6).mean() < 0.01
    assert (factor.blocks[0].order == order).all()


@pytest.mark.parametrize(
    "scheme", [IntegerScheme(4, 32, False), IntegerScheme(8, 64), ScaleMin(4)], ids=str
)
def test_blocks_are_quantized_as_if_they_were_alone(scheme: Scheme) -> None:
    """Correlations between them are ignored; only the mean diagonal is common."""
    weights, second_moment = matrix(24, 320), inputs(320)
    ranges = [(0, 128), (128, 256), (256, 320)]
    parts = [second_moment[start:stop, start:stop] for start, stop in ranges]
    factor = factorize(parts, scheme)
    assert [block.first for block in factor.blocks] == [0, 128, 256]
    apart = np.zeros_like(second_moment)
    for (start, stop), part in zip(ranges, parts, strict=True):
        apart[start:stop, start:stop] = part
    found = gptq(weights, factor, scheme).dequantize()
    wanted = gptq(weights, factorize([apart], scheme), scheme).dequantize()
    assert (np.abs(found - wanted) > 1e-6).mean() < 0.01
    np.testing.assert_allclose(factor.importance, factorize([apart], scheme).importance)


def two_streams(columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """-> (original inputs, the same as earlier quantized layers have changed them)."""
    random = np.random.default_rng(5)
    mixing = random.standard_normal((columns, columns)) * np.exp(random.standard_normal(columns))
    original = random.standard_normal((8 * columns, columns)) @ mixing * 0.1
    change = random.standard_normal((columns, columns)) * 0.3 / np.sqrt(columns)
    noise = random.standard_normal(original.shape) * original.std(0) * 0.1
    return original, original + original @ change + noise


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), ScaleMin(4)], ids=str)
@pytest.mark.parametrize("ranges", [[(0, 192)], [(0, 64), (64, 128), (128, 192)]], ids=len)
def test_the_correction_is_the_least_squares_solution(
    scheme: Scheme, ranges: list[tuple[int, int]]
) -> None:
    original, given = two_streams(192)
    weights = matrix(20, 192)
    count = len(given)
    parts = [given[:, start:stop] for start, stop in ranges]
    moments = [(part.T @ part / count).astype(np.float32) for part in parts]
    differences = [
        ((original[:, start:stop] - part).T @ part / count).astype(np.float32)
        for (start, stop), part in zip(ranges, parts, strict=True)
    ]
    factor = factorize(moments, scheme)
    found = weights + correction(weights, factor, differences)
    damp = factor.damping * np.mean(np.square(given))
    for (start, stop), part in zip(ranges, parts, strict=True):
        damping = damp * np.eye(stop - start)
        second_moment = part.T @ part / count + damping
        # E[x0 xT] + damping: the damping pulls towards the weights, not towards zero.
        mixed = original[:, start:stop].T @ part / count + damping
        wanted = weights[:, start:stop] @ mixed @ np.linalg.inv(second_moment)
        np.testing.assert_allclose(found[:, start:stop], wanted, atol=2e-3)


@pytest.mark.parametrize(
    "scheme", [IntegerScheme(4, 32), IntegerScheme(8, -1, False), ScaleMin(4)], ids=str
)
def test_the_correction_brings_outputs_closer_to_the_original(scheme: Scheme) -> None:
    original, given = two_streams(192)
    weights = matrix(20, 192)
    second_moment = (given.T @ given / len(given)).astype(np.float32)
    difference = ((original - given).T @ given / len(given)).astype(np.float32)
    factor = factorize([second_moment], scheme)
    moved = correction(weights, factor, [difference])

    def loss(target: NDArray[np.float32]) -> float:
        outputs = given @ gptq(target, factor, scheme).dequantize().T
        return float(np.square(original @ weights.T - outputs).sum())

    assert loss(weights + moved) < 0.6 * loss(weights)
    assert loss(weights + np.float32(0.5) * moved) < loss(weights)


@pytest.mark.parametrize("scheme", [*SCHEMES, *SCALE_MIN], ids=str)
def test_gptq_beats_rounding_where_inputs_are_correlated(scheme: Scheme) -> None:
    weights, second_moment = matrix(48, 256), inputs(256)
    errors = [
        output_error(quantized.dequantize() - weights, second_moment)
        for quantized in (
            gptq(weights, factorize([second_moment], scheme), scheme),
            scheme.search(weights),
            scheme.round_to_nearest(weights),
        )
    ]
    assert errors[0] < 0.7 * min(errors[1:])


def test_uncorrelated_equal_inputs_leave_nothing_to_correct() -> None:
    weights, scheme = matrix(16, 128), IntegerScheme(4, 32)
    found = gptq(weights, factorize([np.eye(128, dtype=np.float32)], scheme), scheme)
    np.testing.assert_array_equal(found.dequantize(), scheme.search(weights).dequantize())


@pytest.mark.parametrize(
    "scheme", [IntegerScheme(4, 32), IntegerScheme(4, -1), ScaleMin(4)], ids=str
)
def test_rows_are_independent(scheme: Scheme) -> None:
    weights = matrix(40, 256)
    factor = factorize([inputs(256)], scheme)
    whole = gptq(weights, factor, scheme)
    parts = [gptq(weights[start : start + 8], factor, scheme) for start in range(0, 40, 8)]
    differing = np.concatenate([part.codes for part in parts]) != whole.codes
    assert differing.mean() < 0.01  # matrix products of other sizes round differently


def test_the_order_keeps_groups_together_and_takes_the_loudest_first() -> None:
    second_moment = inputs(192)
    block = factorize([second_moment], IntegerScheme(4, 32)).blocks[0]
    diagonal = np.diagonal(second_moment)
    groups = [block.order[start : start + 32] for start in block.starts]
    assert sorted(block.order) == list(range(192))
    assert all(len(set(members // 32)) == 1 for members in groups)
    loudest = [diagonal[members].max() for members in groups]
    assert loudest == sorted(loudest, reverse=True)
    assert all((np.diff(diagonal[members]) <= 0).all() for members in groups)


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), ScaleMin(4)], ids=str)
def test_dead_inputs_are_rounded_and_disturb_nobody(scheme: Scheme) -> None:
    weights = matrix(16, 128)
    second_moment = inputs(128)
    dead = [5, 6, 40]
    second_moment[dead], second_moment[:, dead] = 0, 0
    found = gptq(weights, factorize([second_moment], scheme), scheme).dequantize()
    steps = np.abs(found - weights)[:, dead] / np.abs(weights).max()
    assert np.isfinite(found).all()
    assert steps.max() < 0.25


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), ScaleMin(4)], ids=str)
def test_all_inputs_dead_is_a_search_for_each_group(scheme: Scheme) -> None:
    weights = matrix(8, 64)
    found = gptq(weights, factorize([np.zeros((64, 64), np.float32)], scheme), scheme)
    np.testing.assert_array_equal(found.dequantize(), scheme.search(weights).dequantize())


def test_damping_grows_until_the_factorisation_succeeds() -> None:
    second_moment = inputs(64)
    second_moment -= 0.5 * np.diagonal(second_moment).mean() * np.eye(64, dtype=np.float32)
    assert factorize([second_moment], IntegerScheme(4, 32)).damping > 0.01


def test_hopeless_moments_are_refused() -> None:
    hopeless = np.full((64, 64), -1000, np.float32)
    np.fill_diagonal(hopeless, 1)
    with pytest.raises(NotPositiveDefinite, match="not positive definite"):
        factorize([hopeless], IntegerScheme(4, 32))


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    second_moment = inputs(300)
    factor = factorize([second_moment], IntegerScheme(8, -1))
    block = factor.blocks[0]
    damped = second_moment[np.ix_(block.order, block.order)].astype(np.float64)
    damped += factor.damping * np.diagonal(second_moment).mean() * np.eye(300)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(block.upper, expected, atol=2e-3 * np.abs(expected).max())
