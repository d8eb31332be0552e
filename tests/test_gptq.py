"""quant/gptq.py against a textbook GPTQ in float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.quant.gptq import NotPositiveDefinite, factorize, gptq
from dsconv.quant.rounding import dequantize, round_to_nearest, search
from dsconv.quant.scheme import Scheme

SCHEMES = [
    Scheme(4, 32),
    Scheme(4, 32, symmetric=False),
    Scheme(4, 128),
    Scheme(4, -1),
    Scheme(8, 64),
    Scheme(8, -1, symmetric=False),
]


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
    scheme: Scheme,
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    order: NDArray[np.intp],
    damping: float,
) -> NDArray[np.float64]:
    """Optimal brain quantization, one column after the other, with a full inverse at every step."""
    work = weights.astype(np.float64)
    damped = second_moment.astype(np.float64)
    damped += damping * np.diagonal(second_moment).mean() * np.eye(len(damped))
    size = weights.shape[1] if scheme.group_size == -1 else scheme.group_size
    result = np.zeros_like(work)
    left = list(order)
    while left:
        column = left[0]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        scale, zero = scales[:, column // size], zeros[:, column // size]
        safe = np.where(scale == 0, 1, scale)
        code = np.clip(np.floor(work[:, column] / safe + zero + 0.5), 0, scheme.max_code)
        result[:, column] = scale * (code - zero)
        error = (work[:, column] - result[:, column]) / inverse[0, 0]
        work[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_equals_the_textbook_on_its_scales(scheme: Scheme) -> None:
    weights, second_moment = matrix(24, 256), inputs(256)
    factor = factorize(second_moment, scheme)
    found = gptq(weights, factor, scheme)
    zeros = np.full(found.scales.shape, scheme.zero, np.float32)
    if found.zeros is not None:
        zeros = found.zeros.astype(np.float32)
    expected = textbook(
        weights,
        second_moment,
        scheme,
        found.scales.astype(np.float32),
        zeros,
        factor.order,
        factor.damping,
    )
    different = np.abs(dequantize(found) - expected) > 1e-6
    # float32 against float64: a code on the brink of the next may fall to either side, and what
    # follows in its row then differs by a step here and there.
    assert different.mean() < 0.01


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_beats_rounding_where_inputs_are_correlated(scheme: Scheme) -> None:
    weights, second_moment = matrix(48, 256), inputs(256)
    errors = [
        output_error(dequantize(quantized) - weights, second_moment)
        for quantized in (
            gptq(weights, factorize(second_moment, scheme), scheme),
            search(weights, scheme),
            round_to_nearest(weights, scheme),
        )
    ]
    assert errors[0] < 0.7 * min(errors[1:])


def test_uncorrelated_equal_inputs_leave_nothing_to_correct() -> None:
    weights, scheme = matrix(16, 128), Scheme(4, 32)
    found = gptq(weights, factorize(np.eye(128, dtype=np.float32), scheme), scheme)
    np.testing.assert_array_equal(dequantize(found), dequantize(search(weights, scheme)))


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(4, -1)], ids=str)
def test_rows_are_independent(scheme: Scheme) -> None:
    weights = matrix(40, 256)
    factor = factorize(inputs(256), scheme)
    whole = gptq(weights, factor, scheme)
    parts = [gptq(weights[start : start + 8], factor, scheme) for start in range(0, 40, 8)]
    differing = np.concatenate([part.codes for part in parts]) != whole.codes
    assert differing.mean() < 0.01  # matrix products of other sizes round differently


def test_the_order_keeps_groups_together_and_takes_the_loudest_first() -> None:
    second_moment = inputs(192)
    factor = factorize(second_moment, Scheme(4, 32))
    diagonal = np.diagonal(second_moment)
    groups = [factor.order[start : start + 32] for start in factor.starts]
    assert sorted(factor.order) == list(range(192))
    assert all(len(set(members // 32)) == 1 for members in groups)
    loudest = [diagonal[members].max() for members in groups]
    assert loudest == sorted(loudest, reverse=True)
    assert all((np.diff(diagonal[members]) <= 0).all() for members in groups)


def test_dead_inputs_are_rounded_and_disturb_nobody() -> None:
    weights, scheme = matrix(16, 128), Scheme(4, 32)
    second_moment = inputs(128)
    dead = [5, 6, 40]
    second_moment[dead], second_moment[:, dead] = 0, 0
    found = dequantize(gptq(weights, factorize(second_moment, scheme), scheme))
    steps = np.abs(found - weights)[:, dead] / np.abs(weights).max()
    assert np.isfinite(found).all()
    assert steps.max() < 0.25


def test_all_inputs_dead_is_plain_rounding() -> None:
    weights, scheme = matrix(8, 64), Scheme(4, 32)
    found = gptq(weights, factorize(np.zeros((64, 64), np.float32), scheme), scheme)
    assert np.isfinite(dequantize(found)).all()


def test_damping_grows_until_the_factorisation_succeeds() -> None:
    second_moment = inputs(64)
    second_moment -= 0.5 * np.diagonal(second_moment).mean() * np.eye(64, dtype=np.float32)
    assert factorize(second_moment, Scheme(4, 32)).damping > 0.01


def test_hopeless_moments_are_refused() -> None:
    hopeless = np.full((64, 64), -1000, np.float32)
    np.fill_diagonal(hopeless, 1)
    with pytest.raises(NotPositiveDefinite, match="not positive definite"):
        factorize(hopeless, Scheme(4, 32))


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    second_moment = inputs(300)
    factor = factorize(second_moment, Scheme(8, -1))
    damped = second_moment[np.ix_(factor.order, factor.order)].astype(np.float64)
    damped += factor.damping * np.diagonal(second_moment).mean() * np.eye(300)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(factor.upper, expected, atol=2e-3 * np.abs(expected).max())
