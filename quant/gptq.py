"""GPTQ: round a matrix column by column, each rounding error corrected by the columns to come.

Frantar et al., arXiv:2210.17323. For inputs x with second moment H = E[x xᵀ] the loss of a row w
is (w - q) H (w - q)ᵀ. After column j is rounded, the remaining columns move by the rounding error
times U[j, j+1:] / U[j, j], where H⁻¹ = Uᵀ U and U is upper triangular.

Columns are taken group by group, the group with the largest input first, and inside a group by
decreasing input ("group-aware order"): groups stay contiguous in the file, and each group's scale
is searched when the group is reached, on weights that already carry the corrections.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rounding import finish, nearest_codes
from .scales import Floats, searched_scales
from .scheme import WHOLE_ROW, Quantized, Scheme

DAMPING = 0.01  # share of the mean diagonal added to the diagonal
DAMPING_LIMIT = 10.0
COLUMNS_AT_A_TIME = 128  # when a whole row is one group
TRIANGLE_BASE = 128


class NotPositiveDefinite(ValueError):
    """The second moment could not be factorised with any damping."""


@dataclass(frozen=True)
class Factor:
    """What the rounding needs of the inputs: shared by all rows, and by all matrices of one input.

    order: the columns in the order of rounding; starts: where each group begins in it;
    upper: U for that order; importance: mean square of each input, in the original order;
    damping: the share that was needed.
    """

    order: NDArray[np.intp]
    starts: tuple[int, ...]
    upper: Floats
    importance: Floats
    damping: float


def factorize(second_moment: Floats, scheme: Scheme, damping: float = DAMPING) -> Factor:
    """Factorise H [columns, columns]; the damping grows tenfold until it succeeds.

    A column whose input is always zero gets the mean diagonal: it neither gives nor takes errors.

    Raises:
        NotPositiveDefinite: not even with a damping of DAMPING_LIMIT.
    """
    diagonal = np.diagonal(second_moment).astype(np.float32)
    mean = float(diagonal.mean())
    if not mean > 0:
        mean = 1.0
    order, starts = _group_aware_order(diagonal, scheme)
    permuted = second_moment[np.ix_(order, order)]
    dead = diagonal[order] <= 0
    size = len(order)
    while True:
        damped = permuted.copy()
        damped[range(size), range(size)] += np.where(dead, mean, damping * mean).astype(np.float32)
        upper = _inverse_upper(damped)
        if upper is not None:
            importance = diagonal + np.float32(damping * mean)
            return Factor(order, starts, upper, importance, damping)
        damping *= 10
        if damping > DAMPING_LIMIT:
            raise NotPositiveDefinite(f"not positive definite with a damping of {damping / 10:g}")


def gptq(weights: Floats, factor: Factor, scheme: Scheme) -> Quantized:
    """Quantize rows [rows, columns]; rows are independent, so any slice of them may be given."""
    rows, columns = weights.shape
    work = np.ascontiguousarray(weights.T[factor.order], dtype=np.float32)  # [columns, rows]
    codes = np.empty((columns, rows), np.uint8)
    groups = scheme.groups(columns)
    scales = np.empty((rows, groups), np.float32)
    zeros = None if scheme.symmetric else np.empty((rows, groups), np.float32)
    bounds = [*factor.starts, columns]
    for start, stop in itertools.pairwise(bounds):
        members = factor.order[start:stop]
        group = 0 if scheme.group_size == WHOLE_ROW else int(members[0]) // scheme.group_size
        updated = np.ascontiguousarray(work[start:stop].T)
        scale, zero = searched_scales(updated, scheme, factor.importance[members])
        scales[:, group] = scale[:, 0]
        centre: Floats | np.float32 = np.float32(scheme.zero)
        if zeros is not None and zero is not None:
            zeros[:, group] = centre = zero[:, 0]
        for left in range(start, stop, COLUMNS_AT_A_TIME):
            right = min(stop, left + COLUMNS_AT_A_TIME)
            codes[left:right] = _round_block(
                work, factor.upper, left, right, scale[:, 0], centre, scheme
            )
    restored = np.empty_like(codes)
    restored[factor.order] = codes
    return finish(restored.T, scales, zeros, scheme)


def _round_block(
    work: Floats,
    upper: Floats,
    left: int,
    right: int,
    scale: Floats,
    centre: Floats | np.float32,
    scheme: Scheme,
) -> NDArray[np.uint8]:
    """Round columns [left, right) of `work` one by one and correct all later ones in place."""
    codes = np.empty((right - left, work.shape[1]), np.uint8)
    errors = np.empty((right - left, work.shape[1]), np.float32)
    for index, column in enumerate(range(left, right)):
        code = nearest_codes(work[column], scale, centre, scheme)
        rounded = scale * (code - centre)
        error = (work[column] - rounded) / upper[column, column]
        work[column + 1 : right] -= upper[column, column + 1 : right, None] * error
        codes[index], errors[index] = code.astype(np.uint8), error
    work[right:] -= upper[left:right, right:].T @ errors
    return codes


def _group_aware_order(
    diagonal: Floats, scheme: Scheme
) -> tuple[NDArray[np.intp], tuple[int, ...]]:
    """-> (columns in the order of rounding, start of each group in it)."""
    columns = len(diagonal)
    size = columns if scheme.group_size == WHOLE_ROW else scheme.group_size
    groups = [np.arange(start, min(columns, start + size)) for start in range(0, columns, size)]
    groups.sort(key=lambda members: (-float(diagonal[members].max()), int(members[0])))
    ordered = [members[np.argsort(-diagonal[members], kind="stable")] for members in groups]
    starts = np.cumsum([0, *map(len, ordered[:-1])])
    return np.concatenate(ordered), tuple(int(start) for start in starts)


def _inverse_upper(matrix: Floats) -> Floats | None:
    """U with matrix⁻¹ = Uᵀ U, or None when the matrix is not positive definite.

    With the matrix turned upside down, its Cholesky factor turned back is upper triangular: matrix
    = R Rᵀ, so U = R⁻¹. One factorisation and one triangular inverse, no full inverse.
    """
    try:
        lower = np.linalg.cholesky(matrix[::-1, ::-1])
    except np.linalg.LinAlgError:
        return None
    upper = _invert_upper_triangle(np.ascontiguousarray(lower[::-1, ::-1]))
    return upper if bool(np.isfinite(upper).all()) else None


def _invert_upper_triangle(matrix: Floats) -> Floats:
    """Halves: [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]."""
    size = len(matrix)
    if size <= TRIANGLE_BASE:
        inverse: Floats = np.triu(np.linalg.inv(matrix)).astype(np.float32)
        return inverse
    half = size // 2
    first = _invert_upper_triangle(matrix[:half, :half])
    second = _invert_upper_triangle(matrix[half:, half:])
    result = np.zeros_like(matrix)
    result[:half, :half], result[half:, half:] = first, second
    result[:half, half:] = -(first @ matrix[:half, half:] @ second)
    return result
