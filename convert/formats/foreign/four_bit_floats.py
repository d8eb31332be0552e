"""FP4 (E2M1) codes under scales of groups: NVFP4 of NVIDIA and compressed-tensors, MXFP4.

Two codes to a byte, the low half first; a code is sign, two bits of exponent, one of mantissa.
NVFP4: groups of 16 with FP8 scales, and one scale for the matrix, which ModelOpt multiplies with
and compressed-tensors divides by. MXFP4: groups of 32, scales are powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsconv.quant.schemes import Floats

from .layout import Codes, Layout, StoredMatrix, Wanted, group_count, per_weight, unpack_words
from .scaled import exponent_scales

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*POSITIVE, *(-value for value in POSITIVE)], np.float32)
NVFP4_GROUP, MXFP4_GROUP = 16, 32


def fp4_values(codes: Codes) -> Floats:
    return np.asarray(VALUES[codes], np.float32)


@dataclass(frozen=True)
class NvFp4Layout(Layout):
    """codes, outer: kinds of the tensors; divides: the outer scale is divided by."""

    maker: str
    codes: str = "weight_packed"
    outer: str = "weight_global_scale"
    divides: bool = True

    @property
    def description(self) -> str:
        return f"{self.maker} nvfp4 g{NVFP4_GROUP}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        return [
            Wanted(self.codes, ((rows, -(-columns // 2)),), ("U8",)),
            Wanted("weight_scale", ((rows, group_count(columns, NVFP4_GROUP)),), ("F8_E4M3",)),
            Wanted(self.outer, ((), (1,)), ("F32",)),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        values = fp4_values(unpack_words(stored.rows(self.codes, start, stop), 4, columns))
        inner = stored.scales("weight_scale", stored.rows("weight_scale", start, stop))
        outer = float(stored.scales(self.outer, stored.rows(self.outer)).reshape(-1)[0])
        if outer <= 0:
            raise stored.fail(self.outer, f"a scale of {outer:g}")
        scales = inner / np.float32(outer) if self.divides else inner * np.float32(outer)
        scales = stored.scales(self.outer, scales)
        return np.asarray(values * per_weight(scales, columns, NVFP4_GROUP), np.float32)


@dataclass(frozen=True)
class MxFp4Layout(Layout):
    maker: str
    codes: str = "weight_packed"
    codes_dtype: str = "U8"
    scale: str = "weight_scale"

    @property
    def description(self) -> str:
        return f"{self.maker} mxfp4 g{MXFP4_GROUP}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        items = -(-columns // 2) if self.codes_dtype == "U8" else -(-columns // 8)
        groups = group_count(columns, MXFP4_GROUP)
        return [
            Wanted(self.codes, ((rows, items),), (self.codes_dtype,)),
            Wanted(self.scale, ((rows, groups),), ("U8", "F8_E8M0")),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        values = fp4_values(unpack_words(stored.rows(self.codes, start, stop), 4, columns))
        scales = exponent_scales(stored, self.scale, start, stop)
        return np.asarray(values * per_weight(scales, columns, MXFP4_GROUP), np.float32)
