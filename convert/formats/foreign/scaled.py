"""One number to a weight, times a scale: FP8, int8 and the like, whoever writes them.

The scale is one for the matrix, one per row, one per group of a row, or one per block of rows and
columns (the last blocks may be ragged).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsconv.quant.schemes import Floats

from .layout import SCALES, WHOLE_ROW, Layout, StoredMatrix, Wanted, group_count, per_weight

FP8 = ("F8_E4M3", "F8_E5M2")
TENSOR = "tensor"
NUMBERS = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2", "I8": "int8"}


@dataclass(frozen=True)
class Granularity:
    """What shares a scale: `rows` x `columns` weights; WHOLE_ROW columns are all of them, 0 rows
    are all of them."""

    rows: int
    columns: int

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        """Of the tensor of scales."""
        if self.rows == 0:
            return ((), (1,), (1, 1))
        groups = group_count(columns, self.columns)
        if self.rows == 1:
            return ((rows, groups), (rows,)) if groups == 1 else ((rows, groups),)
        return ((-(-rows // self.rows), groups),)

    @property
    def words(self) -> str:
        if self.rows == 0:
            return TENSOR
        if self.rows == 1:
            return "row" if self.columns == WHOLE_ROW else f"g{self.columns}"
        return f"{self.rows}x{self.columns}"


WHOLE_TENSOR, ROWS = Granularity(0, WHOLE_ROW), Granularity(1, WHOLE_ROW)


def spread(
    stored: StoredMatrix, kind: str, granularity: Granularity, part: tuple[int, int, int]
) -> Floats:
    """The scales of rows [start, stop) of `columns` weights, where `part` is (start, stop, columns)
    -> something that broadcasts to [stop - start, columns]."""
    start, stop, columns = part
    if granularity.rows == 0:
        return stored.scales(kind, stored.rows(kind)).reshape(1, 1)
    size = granularity.rows
    first = start // size
    scales = stored.scales(kind, stored.rows(kind, first, -(-stop // size)))
    of_row = (np.arange(start, stop) // size) - first
    return per_weight(scales.reshape(len(scales), -1)[of_row], columns, granularity.columns)


@dataclass(frozen=True)
class ScaledLayout(Layout):
    """numbers: dtypes of the weights that are allowed; scale: kind of the tensor of scales;
    zero_point: kind of the tensor of zero points, "" for none; is_exponent: scales are powers of
    two, stored as bytes (E8M0)."""

    maker: str
    numbers: tuple[str, ...]
    granularity: Granularity
    scale: str = "weight_scale"
    zero_point: str = ""
    is_exponent: bool = False

    @property
    def description(self) -> str:
        kind = NUMBERS[self.numbers[0]] if len(self.numbers) == 1 else "fp8"
        return f"{self.maker} {kind} {self.granularity.words}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        shapes = self.granularity.shapes(rows, columns)
        dtypes = ("U8", "F8_E8M0") if self.is_exponent else (*SCALES, "F8_E8M0")
        found = [
            Wanted("weight", ((rows, columns),), self.numbers),
            Wanted(self.scale, shapes, dtypes),
        ]
        if self.zero_point:
            found.append(Wanted(self.zero_point, shapes, ("I8", "I32", "I64")))
        return found

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        part = (start, stop, columns)
        with np.errstate(all="ignore"):  # NaN of a damaged file is told by whoever asked
            values = stored.rows("weight", start, stop).astype(np.float32)
        if self.is_exponent:
            scales = exponent_scales(stored, self.scale, start, stop)
            scales = per_weight(scales, columns, self.granularity.columns)
        else:
            scales = spread(stored, self.scale, self.granularity, part)
        if self.zero_point:
            values = values - spread(stored, self.zero_point, self.granularity, part)
        return np.asarray(values * scales, np.float32)


def exponent_scales(stored: StoredMatrix, kind: str, start: int, stop: int) -> Floats:
    """E8M0: 2^(byte - 127), where 255 is no number."""
    codes = stored.rows(kind, start, stop).view(np.uint8)
    with np.errstate(over="ignore"):
        scales = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return stored.scales(kind, np.where(codes == 255, np.float32(np.nan), scales))
