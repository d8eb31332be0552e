"""Scale and minimum: w ≈ scale * code - minimum, both as 6-bit steps of a super-block.

The algebra of GGUF's Q4_K and Q5_K: a group of 32 weights has a scale and a minimum; a super-block
of (mostly) 8 groups holds one float16 unit for its scales and one for its minima, and every group
the multiple of each, 0 to 63. At the bits of a stored zero point it halves the loss.

The search sweeps the code range, refits scale and minimum to the codes by weighted least squares,
and at last weighs the neighbouring steps against each other on the weights themselves, because
a 6-bit step is coarse: choosing it by rounding alone costs a seventh of the quality.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UsageError

from .scales import MAX_SCALE, ScaleOverflow, inverse
from .schemes import Floats, Grid, QuantizedMatrix, Scheme, Units, joined

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

MAX_STEP = 63
STEP_BITS = 6
BITS = (3, 4, 5, 6)
# Scales tried, as fractions of the one that holds the group's range: 1 ± SWEEP[bits].
SWEEP = {3: 0.16, 4: 0.14, 5: 0.1, 6: 0.06}
SWEEP_STEPS = 12
GRID_WEIGHTS = 1 << 16  # weights whose grid is searched at a time: they stay in a core's cache
TINY = np.float32(1e-20)
SMALLEST = np.finfo(np.float16).smallest_subnormal


@dataclass(frozen=True)
class ScaleMin(Scheme):
    """The scheme: bits per code; groups of 32 along the input dimension."""

    bits: int

    group_size = 32
    symmetric = False
    zero = 0
    has_minima = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            choices = ", ".join(map(str, BITS))
            raise UsageError(
                f"bits: {self.bits} is not supported with scale and minimum", f"choose {choices}"
            )

    @property
    def label(self) -> str:
        return f"scale-min-{self.bits}"

    @classmethod
    def parse(cls, label: str) -> ScaleMin | None:
        match = re.fullmatch(r"scale-min-(\d+)", label)
        return match and cls(int(match[1]))

    @property
    def description(self) -> str:
        return f"scale-min {self.bits} bits"

    def super_size(self, columns: int) -> int:
        """Groups in a super-block: 8 where rows are multiples of 256, else up to 15.

        Rows are split into equal parts of at least 8 groups: a remainder of its own would cost
        32 more bits per row.
        """
        groups = self.groups(columns)
        return -(-groups // max(1, groups // 8))

    def super_blocks(self, columns: int) -> int:
        return -(-self.groups(columns) // self.super_size(columns))

    def plain_grid(self, weights: Floats) -> ScaleMinGrid:
        """Steps that hold each group's range, as far as 6 bits can."""
        x = _grouped(weights, self.group_size, "edge")
        low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
        return _snap((high - low) / np.float32(self.max_code), -low, self, weights.shape[1])

    def grid(self, weights: Floats, importance: Floats | None = None) -> ScaleMinGrid:
        step = max(1, GRID_WEIGHTS // weights.shape[1])
        pieces = [
            _searched_grid(weights[start : start + step], self, importance)
            for start in range(0, len(weights), step)
        ]
        return joined(pieces)


@dataclass(frozen=True)
class ScaleMinMatrix(QuantizedMatrix):
    """A matrix (or a slice of its rows): w ≈ super_scale * scale_step * code - the same of minima.

    codes: [rows, columns] uint8; scale_steps, minimum_steps: [rows, groups] uint8, 0 to 63;
    super_scales, super_minima: [rows, super-blocks] float16, not negative.
    """

    codes: NDArray[np.uint8]
    scale_steps: NDArray[np.uint8]
    minimum_steps: NDArray[np.uint8]
    super_scales: NDArray[np.float16]
    super_minima: NDArray[np.float16]
    scheme: ScaleMin

    @property
    def grid(self) -> ScaleMinGrid:
        return ScaleMinGrid(
            self.scale_steps,
            self.minimum_steps,
            self.super_scales,
            self.super_minima,
            self.scheme.super_size(self.codes.shape[1]),
            self.scheme,
        )

    def dequantize(self) -> Floats:
        columns, grid = self.codes.shape[1], self.grid
        codes = _grouped(self.codes.astype(np.float32), self.scheme.group_size)
        codes *= grid.scales[..., None]
        codes -= grid.minima[..., None]
        return np.ascontiguousarray(codes.reshape(len(codes), -1)[:, :columns])

    def units(self) -> Units:
        return Units(
            (self.super_scales, self.super_minima),
            (self.scale_steps, self.minimum_steps),
            None,
            self.scheme.super_size(self.codes.shape[1]),
        )

    def with_units(self, units: Sequence[NDArray[np.float16]]) -> Self:
        return replace(self, super_scales=units[0], super_minima=units[1])


@dataclass(frozen=True)
class ScaleMinGrid(Grid):
    """Steps and units as `ScaleMinMatrix` has them; super_size: groups in a super-block."""

    scale_steps: NDArray[np.uint8]
    minimum_steps: NDArray[np.uint8]
    super_scales: NDArray[np.float16]
    super_minima: NDArray[np.float16]
    super_size: int
    scheme: ScaleMin

    @property
    def scales(self) -> Floats:
        """[rows, groups] float32, exact."""
        return _spread(self.super_scales, self.super_size, self.scale_steps) * self.scale_steps

    @property
    def minima(self) -> Floats:
        """[rows, groups] float32, exact."""
        return _spread(self.super_minima, self.super_size, self.minimum_steps) * self.minimum_steps

    def values(self) -> tuple[Floats, Floats, Floats]:
        scales = self.scales
        return scales, np.zeros_like(scales), self.minima

    def nearest(self, weights: Floats) -> ScaleMinMatrix:
        x = _grouped(weights, self.scheme.group_size)
        codes = _codes(x, inverse(self.scales)[..., None], self.minima[..., None], self.scheme)
        return self.with_codes(codes.reshape(len(weights), -1)[:, : weights.shape[1]])

    def with_codes(self, codes: NDArray[Any]) -> ScaleMinMatrix:
        return ScaleMinMatrix(
            np.ascontiguousarray(codes.astype(np.uint8)),
            self.scale_steps,
            self.minimum_steps,
            self.super_scales,
            self.super_minima,
            self.scheme,
        )


def _searched_grid(weights: Floats, scheme: ScaleMin, importance: Floats | None) -> ScaleMinGrid:
    """Steps of the smallest squared error; no super-block is worse than plain."""
    columns = weights.shape[1]
    plain = scheme.plain_grid(weights)  # refuses what is too large for the sums below
    x = _grouped(weights, scheme.group_size, "edge")
    weighted = np.ones((1, columns), np.float32) if importance is None else importance[None]
    # An overall factor does not matter; the division keeps tiny importances from underflowing.
    weighted = weighted / max(float(weighted.max()), float(TINY))
    i = _grouped(weighted.astype(np.float32), scheme.group_size)
    scales, minima = _search(x, i, scheme)
    found, error = _choose_steps(x, i, _snap(scales, minima, scheme, columns), scheme)
    plain_error, _ = _squared_error(x, i, plain.scales, plain.minima, scheme)
    size = found.super_size
    plain_wins = _grouped(plain_error, size).sum(-1) < _grouped(error, size).sum(-1)
    return _pick(plain_wins, plain, found)


def _codes(x: Floats, inverted: Floats, minima: Floats, scheme: ScaleMin) -> Floats:
    codes = x + minima
    codes *= inverted
    np.rint(codes, out=codes)
    return np.clip(codes, 0, scheme.max_code, out=codes)


def _search(x: Floats, i: Floats, scheme: ScaleMin) -> tuple[Floats, Floats]:
    """-> best real-valued (scales, minima) [rows, groups]; i: importances [1, groups, size]."""
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    span = high - low
    total = np.maximum(i.sum(-1), TINY)
    weighted = x * i
    mean = weighted.sum(-1) / total
    best_scale, best_minimum = span / np.float32(scheme.max_code), -low
    best_gain = np.full_like(span, -np.inf)
    width = SWEEP[scheme.bits]
    for fraction in np.linspace(1 - width, 1 + width, SWEEP_STEPS, dtype=np.float32):
        # The low end stays where it is: with it the codes differ most from one scale to the next.
        scale, minimum = span * (fraction / np.float32(scheme.max_code)), -low
        for _ in range(2):
            codes = _codes(x, inverse(scale)[..., None], minimum[..., None], scheme)
            scale, minimum, gain = _refit(weighted, i, codes, total, mean)
        better = gain > best_gain
        best_gain[better] = gain[better]
        best_scale[better], best_minimum[better] = scale[better], minimum[better]
    return best_scale, best_minimum


def _refit(
    weighted: Floats, i: Floats, codes: Floats, total: Floats, mean: Floats
) -> tuple[Floats, Floats, Floats]:
    """Weighted least squares for given codes -> (scale, minimum, squared error removed).

    Without a bound scale = cov(c, w) / var(c) and minimum = scale * mean(c) - mean(w). A negative
    scale cannot be stored: then it is 0. Nor a negative minimum: then that is 0, and the scale
    Σicw / Σicc.
    """
    sum_code = np.einsum("rgk,ogk->rg", codes, i)
    sum_square = np.einsum("rgk,rgk,ogk->rg", codes, codes, i)
    sum_product = np.einsum("rgk,rgk->rg", codes, weighted)
    sum_weight = mean * total
    covariance = sum_product - sum_code * mean
    variance = sum_square - sum_code * sum_code / total
    # Where all codes are the same, the variance is nothing but rounding noise.
    varies = variance > np.maximum(np.float32(1e-6) * sum_square, TINY)
    scale = np.where(varies, np.maximum(covariance, 0) / np.maximum(variance, TINY), 0)
    minimum = scale * sum_code / total - mean
    bounded = minimum < 0
    through_zero = np.maximum(sum_product / np.maximum(sum_square, TINY), 0)
    scale = np.where(bounded, through_zero, scale)
    minimum = np.where(bounded, 0, minimum)
    gain = (
        2 * (scale * sum_product - minimum * sum_weight)
        - scale * scale * sum_square
        + 2 * scale * minimum * sum_code
        - minimum * minimum * total
    )
    return scale.astype(np.float32), minimum.astype(np.float32), gain


def _squared_error(
    x: Floats, i: Floats, scale: Floats, minimum: Floats, scheme: ScaleMin
) -> tuple[Floats, Floats]:
    """-> (weighted squared error, sum of the weighted codes) of each group."""
    codes = _codes(x, inverse(scale)[..., None], minimum[..., None], scheme)
    sum_code = np.einsum("rgk,ogk->rg", codes, i)
    codes *= scale[..., None]
    codes -= x
    codes -= minimum[..., None]
    return np.einsum("rgk,rgk,ogk->rg", codes, codes, i), sum_code


def _pick(choice: NDArray[np.bool_], first: ScaleMinGrid, second: ScaleMinGrid) -> ScaleMinGrid:
    """`first` in the super-blocks of `choice` [rows, super-blocks], `second` in the others."""
    groups = np.repeat(choice, first.super_size, axis=1)[:, : first.scale_steps.shape[1]]
    return ScaleMinGrid(
        np.where(groups, first.scale_steps, second.scale_steps),
        np.where(groups, first.minimum_steps, second.minimum_steps),
        np.where(choice, first.super_scales, second.super_scales),
        np.where(choice, first.super_minima, second.super_minima),
        first.super_size,
        first.scheme,
    )


def _choose_steps(
    x: Floats, i: Floats, grid: ScaleMinGrid, scheme: ScaleMin
) -> tuple[ScaleMinGrid, Floats]:
    """Try each group's scale step and its neighbours, each with the minimum refitted to it.

    -> (grid, squared error of each group).
    """
    scale_unit = _spread(grid.super_scales, grid.super_size, grid.scale_steps)
    minimum_unit = _spread(grid.super_minima, grid.super_size, grid.minimum_steps)
    per_minimum = inverse(minimum_unit)
    total = np.maximum(i.sum(-1), TINY)
    weighted_mean = (x * i).sum(-1) / total
    steps = grid.scale_steps.astype(np.float32)
    rounded_minimum = grid.minimum_steps.astype(np.float32)
    best_error = np.full_like(steps, np.inf)
    best_scale, best_minimum = steps.copy(), rounded_minimum.copy()

    def consider(scale_step: Floats, minimum_step: Floats) -> Floats:
        scale, minimum = scale_step * scale_unit, minimum_step * minimum_unit
        error, sum_code = _squared_error(x, i, scale, minimum, scheme)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better], best_minimum[better] = scale_step[better], minimum_step[better]
        refitted = np.rint((scale * sum_code / total - weighted_mean) * per_minimum)
        clipped: Floats = np.clip(refitted, 0, MAX_STEP)
        return clipped

    for offset in (0, -1, 1):
        candidate = np.clip(steps + offset, 0, MAX_STEP)
        refitted = consider(candidate, rounded_minimum)
        consider(candidate, refitted)
    chosen = ScaleMinGrid(
        best_scale.astype(np.uint8),
        best_minimum.astype(np.uint8),
        grid.super_scales,
        grid.super_minima,
        grid.super_size,
        scheme,
    )
    return chosen, best_error


def _snap(scales: Floats, minima: Floats, scheme: ScaleMin, columns: int) -> ScaleMinGrid:
    """Round scales and minima [rows, groups] to steps of their super-block's largest."""
    size = scheme.super_size(columns)
    # Where llama.cpp's super-blocks do not fit, a group is stored there with float16 scale and
    # minimum: with units of 5 significant bits the product with a 6-bit step is exact.
    exact = columns % 256 != 0
    scale_steps, super_scales = _steps(scales, size, exact)
    minimum_steps, super_minima = _steps(minima, size, exact)
    return ScaleMinGrid(scale_steps, minimum_steps, super_scales, super_minima, size, scheme)


def _steps(values: Floats, size: int, exact: bool) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """-> (steps [rows, groups], units [rows, super-blocks])."""
    blocks = _grouped(values, size)
    unit = blocks.max(-1) / np.float32(MAX_STEP)
    largest = float(unit.max(initial=0.0))
    if largest * MAX_STEP > MAX_SCALE:
        raise ScaleOverflow(f"a scale of {largest:g} does not fit float16 (limit {MAX_SCALE:g})")
    if exact:
        mantissa, exponent = np.frexp(unit)
        unit = np.ldexp(np.ceil(mantissa * 32) / 32, exponent).astype(np.float32)
    half = np.where(unit > 0, np.maximum(unit.astype(np.float16), SMALLEST), np.float16(0))
    steps = np.rint(values * inverse(_spread(half, size, values)))
    return np.clip(steps, 0, MAX_STEP).astype(np.uint8), half


def _spread(per_block: NDArray[np.float16], size: int, like: NDArray[Any]) -> Floats:
    """[rows, super-blocks] -> float32 [rows, groups]."""
    spread: Floats = np.repeat(per_block.astype(np.float32), size, axis=1)[:, : like.shape[1]]
    return spread


def _grouped(values: Floats, size: int, mode: Any = "constant") -> Floats:
    """[rows, n] -> [rows, blocks, size], the last block padded with zeros (or its end)."""
    padding = -values.shape[1] % size
    if padding:
        values = np.pad(values, ((0, 0), (0, padding)), mode)
    return values.reshape(len(values), -1, size)
