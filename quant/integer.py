"""Integer codes with a float16 scale per group, and with zero points where not symmetric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UsageError

from .scales import check_scales, grouped, nearest_codes, plain_scales, searched_scales
from .schemes import WHOLE_ROW, Floats, Grid, QuantizedMatrix, Scheme, Units

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

GROUP_SIZES = (32, 64, 128)
# Groups a tensor may fall back to when its row is no multiple of the group asked for.
FALLBACK_GROUP_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class IntegerScheme(Scheme):
    """Integer codes with one scale per group along the input dimension: w ≈ scale * (code - zero).

    Codes are unsigned, 0 .. 2^bits - 1. Symmetric means zero = 2^(bits-1) everywhere.
    `group_size` -1 is one group per row.
    """

    bits: int
    group_size: int
    symmetric: bool = True

    is_plain = True
    by_group = True

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
    def label(self) -> str:
        """`-zero` marks stored zero points."""
        return f"int{self.bits}-{self._group}" + ("" if self.symmetric else "-zero")

    @classmethod
    def parse(cls, label: str) -> IntegerScheme | None:
        match = re.fullmatch(r"int(\d+)-(?:g(\d+)|row)(-zero)?", label)
        return match and cls(int(match[1]), int(match[2] or WHOLE_ROW), match[3] is None)

    @property
    def description(self) -> str:
        return f"int{self.bits} {self._group} {'symmetric' if self.symmetric else 'asymmetric'}"

    @property
    def _group(self) -> str:
        return "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"

    @property
    def zero(self) -> int:
        return 1 << (self.bits - 1)

    def for_columns(self, columns: int) -> IntegerScheme:
        """The group falls back to one that divides the row.

        compressed-tensors and most kernels refuse a shorter last group. Where no group of at
        least 16 divides, the whole row becomes one group.
        """
        if self.group_size == WHOLE_ROW or columns % self.group_size == 0:
            return self
        for size in FALLBACK_GROUP_SIZES:
            if size < self.group_size and columns % size == 0:
                return replace(self, group_size=size)
        return replace(self, group_size=WHOLE_ROW)

    def plain_grid(self, weights: Floats) -> IntegerGrid:
        """Symmetric codes equal those of onnxruntime-genai's builder.

        The codes follow from the unrounded scale, which is stored as float16 afterwards.
        """
        return IntegerGrid(*plain_scales(weights, self), self)

    def grid(self, weights: Floats, importance: Floats | None = None) -> IntegerGrid:
        return IntegerGrid(*searched_scales(weights, self, importance), self)


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """Scales and zero points [rows, groups] before they are stored; no zeros when symmetric."""

    scales: Floats
    zeros: Floats | None
    scheme: IntegerScheme

    def values(self) -> tuple[Floats, Floats, None]:
        if self.zeros is not None:
            return self.scales, self.zeros, None
        return self.scales, np.full_like(self.scales, self.scheme.zero), None

    def nearest(self, weights: Floats) -> IntegerMatrix:
        scheme = self.scheme
        centre = np.float32(scheme.zero) if self.zeros is None else self.zeros[..., None]
        scales = self.scales[..., None]
        codes = nearest_codes(grouped(weights, scheme), scales, centre, scheme.max_code)
        return self.with_codes(codes.reshape(len(weights), -1)[:, : weights.shape[1]])

    def with_codes(self, codes: NDArray[Any]) -> IntegerMatrix:
        check_scales(self.scales)
        return IntegerMatrix(
            np.ascontiguousarray(codes.astype(np.uint8)),
            self.scales.astype(np.float16),
            None if self.zeros is None else self.zeros.astype(np.uint8),
            self.scheme,
        )


@dataclass(frozen=True)
class IntegerMatrix(QuantizedMatrix):
    """A quantized matrix (or a slice of its rows).

    codes: [rows, columns] uint8; scales: [rows, groups] float16;
    zeros: [rows, groups] uint8, or None when symmetric.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None
    scheme: IntegerScheme

    def dequantize(self) -> Floats:
        """-> [rows, columns] float32: scale * (code - zero), exact."""
        columns = self.codes.shape[1]
        codes = grouped(self.codes.astype(np.float32), self.scheme)
        zeros = self.zeros
        centre = (
            np.float32(self.scheme.zero) if zeros is None else zeros.astype(np.float32)[..., None]
        )
        values = (codes - centre) * self.scales.astype(np.float32)[..., None]
        return np.ascontiguousarray(values.reshape(codes.shape[0], -1)[:, :columns])

    def units(self) -> Units:
        zeros = self.zeros
        if zeros is None:
            zeros = np.full(self.scales.shape, self.scheme.zero, np.uint8)
        return Units((self.scales,), (np.ones(self.scales.shape, np.uint8),), zeros, 1)

    def with_units(self, units: Sequence[NDArray[np.float16]]) -> Self:
        return replace(self, scales=units[0])
