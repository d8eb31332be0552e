"""GPTQ: round a matrix column by column, each rounding error corrected by the columns to come.

Frantar et al., arXiv:2210.17323. For inputs x with second moment H = E[x xᵀ] the loss of a row w
is (w - q) H (w - q)ᵀ. After column j is rounded, the remaining columns move by the rounding error
times U[j, j+1:] / U[j, j], where H⁻¹ = Uᵀ U and U is upper triangular. The loss comes out as the
sum of the squared errors (w_j - q_j) / U[j, j].

A scheme `by_group` (integers): columns are taken group by group, the group with the largest input
first, and inside a group by decreasing input ("group-aware order"); each group's scale is searched
when the group is reached, on weights that already carry the corrections. Other schemes: the grid is
known before, and columns go by decreasing input alone; a super-block of scale and minimum ties
eight groups together, the scale of int8 rows is that of the largest weight. Groups stay contiguous
in the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scales import nearest_codes
from .schemes import Floats, Grid, QuantizedMatrix, Scheme, joined

DAMPING = 0.01  # share of the mean diagonal added to the diagonal
DAMPING_LIMIT = 10.0
COLUMNS_AT_A_TIME = 128
TRIANGLE_BASE = 128


class NotPositiveDefinite(ValueError):
    """The second moment could not be factorised with any damping."""


@dataclass(frozen=True)
class BlockFactor:
    """U of the columns from `first` on. order: the columns, counted from `first`, in the order of
    rounding; starts: where each group begins in it (empty: the grid is known before)."""

    first: int
    order: NDArray[np.intp]
    starts: tuple[int, ...]
    upper: Floats


@dataclass(frozen=True)
class Factor:
    """What the rounding needs of the inputs: shared by all rows, and by all matrices of one input.

    blocks: one, or several where the whole second moment would not fit in memory: correlations
    between blocks are then ignored; importance: mean square of each input [columns];
    damping: the largest share that was needed.
    """

    blocks: tuple[BlockFactor, ...]
    importance: Floats
    damping: float


def factorize(moments: Sequence[Floats], scheme: Scheme, damping: float = DAMPING) -> Factor:
    """Factorise the diagonal blocks of H; the damping grows tenfold until it succeeds.

    A column whose input is always zero gets the mean diagonal: it neither gives nor takes errors.

    Args:
        moments: H [columns, columns], or square blocks along its diagonal, of whole groups.

    Raises:
        NotPositiveDefinite: not even with a damping of DAMPING_LIMIT.
    """
    diagonal = np.concatenate([np.diagonal(moment) for moment in moments]).astype(np.float32)
    mean = float(diagonal.mean())
    if not mean > 0:
        mean = 1.0
    blocks, needed, first = [], damping, 0
    for moment in moments:
        part = diagonal[first : first + len(moment)]
        order, starts = _order(part, scheme)
        upper, used = _damped_inverse(moment, order, mean, damping)
        blocks.append(BlockFactor(first, order, starts, upper))
        needed = max(needed, used)
        first += len(moment)
    return Factor(tuple(blocks), diagonal + np.float32(needed * mean), needed)


def _damped_inverse(
    moment: Floats, order: NDArray[np.intp], mean: float, damping: float
) -> tuple[Floats, float]:
    """-> (U of the columns in `order`, the damping that was needed)."""
    backwards = order[::-1]  # see _inverse_upper
    diagonal = np.diagonal(moment)[backwards]
    dead = diagonal <= 0
    while True:
        flipped = moment[np.ix_(backwards, backwards)]
        np.fill_diagonal(flipped, diagonal + np.where(dead, mean, damping * mean))
        upper = _inverse_upper(flipped)
        if upper is not None:
            return upper, damping
        damping *= 10
        if damping > DAMPING_LIMIT:
            raise NotPositiveDefinite(f"not positive definite with a damping of {damping / 10:g}")


def correction(weights: Floats, factor: Factor, differences: Sequence[Floats]) -> Floats:
    """-> w D H⁻¹: how far rows [rows, columns] move to make up for what earlier layers changed.

    The output wanted is w·x₀ with x₀ the original model's input, where only x is given. Its least
    squares solution is w + w D H⁻¹ with D = E[(x₀ - x) xᵀ]; rounding that by GPTQ minimises
    E|w x₀ - q x|². (The aim of GPTAQ, Li et al., arXiv:2504.02692, solved before the rounding.)

    Args:
        differences: D of every block of the factor's columns.
    """
    result: Floats = np.empty_like(weights)
    for block, difference in zip(factor.blocks, differences, strict=True):
        columns = slice(block.first, block.first + len(block.order))
        wanted = (weights[:, columns] @ difference)[:, block.order]
        result[:, block.order + block.first] = (wanted @ block.upper.T) @ block.upper
    return result


def gptq(weights: Floats, factor: Factor, scheme: Scheme) -> QuantizedMatrix:
    """Quantize rows [rows, columns]; rows are independent, so any slice of them may be given."""
    if scheme.by_group:
        return _group_by_group(weights, factor, scheme)
    return _on_known_grid(weights, factor, scheme)


def _group_by_group(weights: Floats, factor: Factor, scheme: Scheme) -> QuantizedMatrix:
    rows, columns = weights.shape
    codes = np.empty((columns, rows), np.uint8)
    found: dict[int, Grid] = {}
    for block in factor.blocks:
        order = block.order + block.first
        work = np.ascontiguousarray(weights.T[order], dtype=np.float32)  # [columns, rows]
        rounded = np.empty(work.shape, np.uint8)
        for start, stop in itertools.pairwise([*block.starts, len(order)]):
            members = order[start:stop]
            updated = np.ascontiguousarray(work[start:stop].T)
            grid = scheme.grid(updated, factor.importance[members])
            found[int(members[0]) // scheme.group_length(columns)] = grid
            scale, zero, _ = grid.values()
            for left in range(start, stop, COLUMNS_AT_A_TIME):
                right = min(stop, left + COLUMNS_AT_A_TIME)
                shape = (right - left, rows)
                grids = np.broadcast_to(scale[:, 0], shape), np.broadcast_to(zero[:, 0], shape)
                upper = block.upper[left:, left:]
                rounded[left:right] = _round_block(work[left:], upper, *grids, scheme)
        codes[order] = rounded
    return joined([found[group] for group in sorted(found)], axis=1).with_codes(codes.T)


def _on_known_grid(weights: Floats, factor: Factor, scheme: Scheme) -> QuantizedMatrix:
    rows, columns = weights.shape
    grid = scheme.grid(weights, factor.importance)
    scales, zeros, minima = grid.values()
    scales, zeros = np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T)  # [groups, rows]
    codes = np.empty((columns, rows), np.uint8)
    for block in factor.blocks:
        order = block.order + block.first
        groups = order // scheme.group_length(columns)
        work = np.ascontiguousarray(weights.T[order], dtype=np.float32)  # [columns, rows]
        if minima is not None:
            # So shifted, a code stands for scale * code; corrections do not see the shift.
            work += minima.T[groups]
        rounded = np.empty(work.shape, np.uint8)
        for left in range(0, len(order), COLUMNS_AT_A_TIME):
            right = min(len(order), left + COLUMNS_AT_A_TIME)
            members = groups[left:right]
            grids = scales[members], zeros[members]
            upper = block.upper[left:, left:]
            rounded[left:right] = _round_block(work[left:], upper, *grids, scheme)
        codes[order] = rounded
    return grid.with_codes(codes.T)


def _round_block(
    work: Floats, upper: Floats, scales: Floats, centres: Floats, scheme: Scheme
) -> NDArray[np.uint8]:
    """Round the first columns of `work` one by one and correct all later ones in place.

    scales, centres: [columns to round, rows]; a code stands for scale * (code - centre).
    """
    count = len(scales)
    codes = np.empty(scales.shape, np.uint8)
    errors = np.empty(scales.shape, np.float32)
    for column, (scale, centre) in enumerate(zip(scales, centres, strict=True)):
        code = nearest_codes(work[column], scale, centre, scheme.max_code)
        rounded = scale * (code - centre)
        error = (work[column] - rounded) / upper[column, column]
        work[column + 1 : count] -= upper[column, column + 1 : count, None] * error
        codes[column], errors[column] = code.astype(np.uint8), error
    work[count:] -= upper[:count, count:].T @ errors
    return codes


def _order(diagonal: Floats, scheme: Scheme) -> tuple[NDArray[np.intp], tuple[int, ...]]:
    """-> (columns in the order of rounding, start of each group in it)."""
    if not scheme.by_group:
        return np.argsort(-diagonal, kind="stable"), ()
    columns = len(diagonal)
    size = scheme.group_length(columns)
    groups = [np.arange(start, min(columns, start + size)) for start in range(0, columns, size)]
    groups.sort(key=lambda members: (-float(diagonal[members].max()), int(members[0])))
    ordered = [members[np.argsort(-diagonal[members], kind="stable")] for members in groups]
    starts = np.cumsum([0, *map(len, ordered[:-1])])
    return np.concatenate(ordered), tuple(int(start) for start in starts)


def _inverse_upper(flipped: Floats) -> Floats | None:
    """U with matrix⁻¹ = Uᵀ U, or None when the matrix is not positive definite.

    Given the matrix turned upside down, whose Cholesky factor turned back is upper triangular:
    matrix = R Rᵀ, so U = R⁻¹. One factorisation and one triangular inverse, no full inverse.
    `flipped` is given up: it becomes U.
    """
    import torch  # heavy, and not needed by those who only ask for options

    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(flipped))  # NumPy's is float64
    if int(failed):
        return None
    flipped[...] = lower.numpy()[::-1, ::-1]
    del lower
    _invert_upper_triangle(flipped)
    return flipped if bool(np.isfinite(flipped).all()) else None


def _invert_upper_triangle(matrix: Floats) -> None:
    """In place, by halves: [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]."""
    size = len(matrix)
    if size <= TRIANGLE_BASE:
        matrix[...] = np.triu(np.linalg.inv(matrix))
        return
    half = size // 2
    first, second = matrix[:half, :half], matrix[half:, half:]
    _invert_upper_triangle(first)
    _invert_upper_triangle(second)
    corner = first @ matrix[:half, half:]
    np.negative(corner, out=corner)
    np.matmul(corner, second, out=matrix[:half, half:])
