"""Second moments of the inputs of a matrix, summed over the calibration windows.

H = Σ x xᵀ over all positions, and, where inputs are also known as the original model gives them,
D = Σ (x₀ - x) xᵀ. Only squares along the diagonal are kept when the whole would not fit in memory.
For maps with a bias, which can take any constant error back, both are taken about the mean.

Products are computed in the type of the activations and summed in float32; in bfloat16 a product of
512 positions is rounded to 8 bits once, and the sum over many such products averages that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsconv.convert.forward.workers import Workers
from dsconv.quant.schemes import Floats

TILE = 1024  # rows of one product: work for one thread
# Squares alive while moments become factors: H, D and U of every block ...
SQUARES_KEPT = 3
SQUARES_PASSING = 1  # ... and what the factorisation of one needs besides


@dataclass(frozen=True)
class InputStatistics:
    """Per diagonal block: mean of x xᵀ and, with two streams, mean of (x₀ - x) xᵀ.

    mean, mean_difference: of x and of x₀ - x [columns]. `centred` says that they are already taken
    off x and x₀ - x in the products above.
    """

    moments: list[Floats]
    differences: list[Floats]
    mean: Floats
    mean_difference: Floats
    centred: bool = False

    def squares(self) -> Floats:
        """Mean square of each input [columns]."""
        return np.concatenate([np.diagonal(moment) for moment in self.moments])

    def divide(self, scales: Floats) -> None:
        """Turn them, in place, into those of inputs divided by scales [columns]."""
        parts = np.split(scales, np.cumsum([len(moment) for moment in self.moments])[:-1])
        for squares in (self.moments, self.differences):
            for square, part in zip(squares, parts, strict=False):  # there may be no differences
                square /= part[:, None]
                square /= part
        for vector in (self.mean, self.mean_difference):
            vector /= scales


def diagonal_blocks(columns: int, group_size: int, max_bytes: int) -> list[tuple[int, int]]:
    """Split the columns into the fewest equal ranges of whole groups that fit in `max_bytes`."""
    unit = 1 if group_size <= 0 else group_size
    units = -(-columns // unit)
    for count in range(1, units + 1):
        width = -(-units // count) * unit
        squares = SQUARES_KEPT * count + SQUARES_PASSING
        if squares * width * width * 4 <= max_bytes:
            break
    return [(start, min(columns, start + width)) for start in range(0, columns, width)]


@dataclass(frozen=True)
class Tile:
    """Rows [left, right) of the square of the columns [start, stop)."""

    start: int
    stop: int
    left: int
    right: int


@torch.inference_mode()  # which counts for one thread only
def tile_products(
    tile: Tile, x: torch.Tensor, difference: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """-> (Σ x xᵀ from the diagonal on, Σ (x₀ - x) xᵀ), for a batch of positions.

    A unit of work: a pure function of values that can be pickled.
    """
    moment = x[:, tile.left : tile.right].T @ x[:, tile.left : tile.stop]
    if difference is None:
        return moment, None
    return moment, difference[:, tile.left : tile.right].T @ x[:, tile.start : tile.stop]


@dataclass(frozen=True)
class _Place:
    """Where the sums of a tile lie."""

    tile: Tile
    moment: torch.Tensor
    difference: torch.Tensor | None


@torch.inference_mode()
def _add(place: _Place, x: torch.Tensor, difference: torch.Tensor | None) -> None:
    """The products of threads of this process, added where they are computed."""
    moment, mixed = tile_products(place.tile, x, difference)
    place.moment.add_(moment)
    if place.difference is not None and mixed is not None:
        place.difference.add_(mixed)


class MomentSum:
    """Running sums; `add` is called with batches of positions.

    centred: take the moments about the mean. The mean of the first batch comes off before the
    products, which may be rounded, the little that is left of the mean after the last one.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[int, int]],
        with_differences: bool,
        workers: Workers,
        centred: bool = False,
    ) -> None:
        self._blocks = blocks
        self._centred = centred
        columns = blocks[-1][1]
        self._shift: torch.Tensor | None = None
        self._sum = torch.zeros(columns, dtype=torch.float64)
        self._sum_of_differences = torch.zeros(columns, dtype=torch.float64)
        self._workers = workers
        sizes = [stop - start for start, stop in blocks]
        self._moments = [torch.zeros(size, size) for size in sizes]
        self._differences = [torch.zeros(size, size) for size in sizes if with_differences]
        self._places = list(self._tiles())
        self._positions = 0

    def add(self, x: torch.Tensor, original: torch.Tensor | None = None) -> None:
        """x, original: [positions, columns]."""
        difference = None if original is None else original - x
        if self._centred:
            if self._shift is None:
                self._shift = x.float().mean(0).to(x.dtype)
            x = x - self._shift
        self._sum += x.sum(0, dtype=torch.float64)
        if difference is not None:
            self._sum_of_differences += difference.sum(0, dtype=torch.float64)
        for _ in self._workers.in_order(_add, self._places, x, difference):
            pass
        self._positions += len(x)

    def finish(self) -> InputStatistics:
        """Means; the sums are given up."""
        for moment in (*self._moments, *self._differences):
            moment /= self._positions
        for moment in self._moments:
            _mirror(moment)
        mean = (self._sum / self._positions).float()
        difference = (self._sum_of_differences / self._positions).float()
        if self._centred:
            for index, (start, stop) in enumerate(self._blocks):
                part = mean[start:stop]
                self._moments[index].addr_(part, part, alpha=-1)
                if self._differences:
                    self._differences[index].addr_(difference[start:stop], part, alpha=-1)
            if self._shift is not None:
                mean += self._shift.float()
        result = InputStatistics(
            [moment.numpy() for moment in self._moments],
            [difference.numpy() for difference in self._differences],
            mean.numpy(),
            difference.numpy(),
            self._centred,
        )
        self._moments, self._differences, self._places = [], [], []
        return result

    def _tiles(self) -> Iterator[_Place]:
        for index, (start, stop) in enumerate(self._blocks):
            for left in range(start, stop, TILE):
                tile = Tile(start, stop, left, min(stop, left + TILE))
                rows = slice(left - start, tile.right - start)
                moment = self._moments[index][rows, left - start :]
                yield _Place(
                    tile, moment, self._differences[index][rows] if self._differences else None
                )


def _mirror(moment: torch.Tensor) -> None:
    """Copy the upper triangle to the lower one, tile by tile."""
    size = len(moment)
    for left in range(0, size, TILE):
        right = min(size, left + TILE)
        square = moment[left:right, left:right]
        square.copy_(torch.triu(square) + torch.triu(square, 1).T)
        moment[right:, left:right] = moment[left:right, right:].T
