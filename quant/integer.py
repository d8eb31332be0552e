"""How a matrix is quantized, and the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UsageError

GROUP_SIZES = (32, 64, 128)
WHOLE_ROW = -1
# Groups a tensor may fall back to when its row is no multiple of the group asked for.
FALLBACK_GROUP_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class IntegerScheme:
    """Integer codes with one scale per group along the input dimension: w ≈ scale * (code - zero).

    Codes are unsigned, 0 .. 2^bits - 1. Symmetric means zero = 2^(bits-1) everywhere.
    `group_size` -1 is one group per row.
    """

    bits: int
    group_size: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"bits: {self.bits} is not supported", "choose 4 or 8")
        if self.group_size != WHOLE_ROW and self.group_size not in (16, *GROUP_SIZES):
            choices = ", ".join(map(str, GROUP_SIZES))
            raise UsageError(
                f"group size: {self.group_size} is not supported",
                f"choose {choices}, or -1 for one group per row",
            )

    @property
    def zero(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights; the last one may be shorter."""
        return 1 if self.group_size == WHOLE_ROW else -(-columns // self.group_size)

    def for_columns(self, columns: int) -> IntegerScheme:
        """The scheme to use for a row of `columns`: the group falls back to one that divides it.

        compressed-tensors and most kernels refuse a shorter last group. Where no group of at
        least 16 divides, the whole row becomes one group.
        """
        if self.group_size == WHOLE_ROW or columns % self.group_size == 0:
            return self
        for size in FALLBACK_GROUP_SIZES:
            if size < self.group_size and columns % size == 0:
                return IntegerScheme(self.bits, size, self.symmetric)
        return IntegerScheme(self.bits, WHOLE_ROW, self.symmetric)


@dataclass(frozen=True)
class IntegerMatrix:
    """A quantized matrix (or a slice of its rows).

    codes: [rows, columns] uint8; scales: [rows, groups] float16;
    zeros: [rows, groups] uint8, or None when symmetric.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None
    scheme: IntegerScheme
