"""Integers of 1 to 8 bits in words of 32, as compressed-tensors packs them along the inputs.

Codes and packed zero points are stored with 2^(bits - 1) added; zero points of earlier versions are
int8 as they are. `weight_g_idx` tells the group of every input where columns were reordered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dsconv.quant.schemes import Floats

from .layout import SCALES, Layout, StoredMatrix, Wanted, per_weight, unpack_words
from .scaled import Granularity

ZERO_POINT, GROUP_INDEX = "weight_zero_point", "weight_g_idx"


@dataclass(frozen=True)
class PackedIntegers(Layout):
    bits: int
    granularity: Granularity
    is_symmetric: bool
    has_index: bool = False
    has_packed_zeros: bool = True

    @property
    def description(self) -> str:
        kind = "symmetric" if self.is_symmetric else "asymmetric"
        order = " act-order" if self.has_index else ""
        return f"compressed-tensors int{self.bits} {self.granularity.words} {kind}{order}"

    def settled(self, stored: StoredMatrix, rows: int, columns: int) -> Layout:
        is_packed = stored.has(ZERO_POINT) and stored.dtype(ZERO_POINT) == "I32"
        return replace(
            self, has_packed_zeros=is_packed, has_index=self.has_index or stored.has(GROUP_INDEX)
        )

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        shapes = self.granularity.shapes(rows, columns)
        found = [
            Wanted("weight_packed", ((rows, -(-columns * self.bits // 32)),), ("I32",)),
            Wanted("weight_scale", shapes, SCALES),
            Wanted("weight_shape", ((2,),), ("I64", "I32"), True),
        ]
        if self.has_index:
            found.append(Wanted(GROUP_INDEX, ((columns,),), ("I32", "I64")))
        if not self.is_symmetric and self.has_packed_zeros:
            groups = shapes[0][1] if self.granularity.rows else 1
            words = -(-rows * self.bits // 32)
            found.append(Wanted(ZERO_POINT, ((words, groups),), ("I32",)))
        elif not self.is_symmetric:
            found.append(Wanted(ZERO_POINT, shapes, ("I8",)))
        return found

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        codes = unpack_words(stored.rows("weight_packed", start, stop), self.bits, columns)
        scales = self._spread(stored, self._scales(stored, "weight_scale", start, stop), columns)
        deviations = codes.astype(np.float32) - np.float32(1 << (self.bits - 1))
        if not self.is_symmetric:
            zeros = self._spread(stored, self._zero_points(stored, start, stop), columns)
            deviations = deviations - zeros
        stored.refuse_lost("weight_scale", scales, deviations)
        return np.asarray(deviations * scales, np.float32)

    def _scales(self, stored: StoredMatrix, kind: str, start: int, stop: int) -> Floats:
        """-> [stop - start or 1, groups]."""
        if self.granularity.rows == 0:
            return stored.scales(kind, stored.rows(kind)).reshape(1, 1)
        return stored.scales(kind, stored.rows(kind, start, stop)).reshape(stop - start, -1)

    def _zero_points(self, stored: StoredMatrix, start: int, stop: int) -> Floats:
        if not self.has_packed_zeros:
            return self._scales(stored, ZERO_POINT, start, stop)
        first = start - start % 32  # 32 codes fill whole words
        words = stored.shape(ZERO_POINT)[0]
        last = min(-(-stop // 32) * self.bits, words)
        packed = stored.rows(ZERO_POINT, first * self.bits // 32, last)
        codes = unpack_words(packed.T, self.bits, stop - first)[:, start - first :].T
        return np.asarray(codes.astype(np.float32) - np.float32(1 << (self.bits - 1)))

    def _spread(self, stored: StoredMatrix, values: Floats, columns: int) -> Floats:
        if not self.has_index:
            return per_weight(values, columns, self.granularity.columns)
        group = stored.rows(GROUP_INDEX).astype(np.int64)
        if group.min(initial=0) < 0 or group.max(initial=0) >= values.shape[1]:
            raise stored.fail(GROUP_INDEX, f"a group outside 0..{values.shape[1] - 1}")
        return np.asarray(values[:, group], np.float32)
