"""Int8 with one symmetric scale per row of a matrix, for weights and the activations they meet.

A row is an output of the weights or a token of the activations. The largest magnitude maps onto
127 and -128 is not used, so scales are positive and a row and its negative round alike. Weights are
rounded once, activations as they come ("dynamic"), so that kernels multiply int8 by int8. vLLM's
compute the same scale; compressed-tensors divides by 127.5 where it simulates them.

Searching for a smaller weight scale was tried and left the divergence of whole models higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .schemes import WHOLE_ROW, Floats, Grid, QuantizedMatrix, Scheme

MAX_CODE = 127


@dataclass(frozen=True)
class Int8Rows(Scheme):
    """The scheme of weights: w ≈ scale * code, and their inputs are rounded alike, per token.

    While rounding, codes are counted from 0 as in the other schemes: `zero` stands for code 0.
    """

    bits = 8
    group_size = WHOLE_ROW
    symmetric = True
    zero = MAX_CODE
    max_code = 2 * MAX_CODE
    label = "w8a8"
    description = "int8 row, inputs int8"

    rounds_inputs = True
    tunable = False  # smoothing divides the scales

    @classmethod
    def parse(cls, label: str) -> Int8Rows | None:
        return cls() if label == cls.label else None

    def undivided(self, columns: int) -> int:
        """The scale is that of the largest weight, whatever the block."""
        return 1

    def plain_grid(self, weights: Floats) -> Int8RowsGrid:
        """Scale 1 for a row of zeros, since readers want positive scales."""
        scales = _scales(weights)
        return Int8RowsGrid(np.where(scales > 0, scales, np.float32(1)))

    def grid(self, weights: Floats, importance: Floats | None = None) -> Int8RowsGrid:
        return self.plain_grid(weights)

    def received(self, inputs: Floats) -> Floats:
        return simulate_rows(inputs)


@dataclass(frozen=True)
class Int8RowsGrid(Grid):
    """scales: [rows, 1]"""

    scales: Floats

    def values(self) -> tuple[Floats, Floats, None]:
        return self.scales, np.full_like(self.scales, MAX_CODE), None

    def nearest(self, weights: Floats) -> Int8RowsMatrix:
        """Halves to the even code."""
        codes, _ = _round(weights)
        return Int8RowsMatrix(codes.astype(np.int8), self.scales)

    def with_codes(self, codes: NDArray[Any]) -> Int8RowsMatrix:
        centred = codes.astype(np.int16) - MAX_CODE
        return Int8RowsMatrix(np.ascontiguousarray(centred.astype(np.int8)), self.scales)


@dataclass(frozen=True)
class Int8RowsMatrix(QuantizedMatrix):
    """A quantized matrix (or a slice of its rows).

    codes: [rows, columns] int8; scales: [rows, 1] float32.
    """

    codes: NDArray[np.int8]
    scales: Floats
    scheme = Int8Rows()

    def dequantize(self) -> Floats:
        return self.codes * self.scales


def quantize_rows(values: Floats) -> tuple[NDArray[np.int8], Floats]:
    """[rows, features] -> (codes [rows, features], scales [rows, 1]); a row of zeros has scale 0.

    Values must be finite.
    """
    codes, scales = _round(values)
    return codes.astype(np.int8), scales


def simulate_rows(values: Floats) -> Floats:
    """What the codes of `quantize_rows` stand for -> [rows, features] float32."""
    codes, scales = _round(values)
    codes *= scales
    return codes


def _scales(values: Floats) -> Floats:
    largest: Floats = np.maximum(values.max(-1, keepdims=True), -values.min(-1, keepdims=True))
    return largest / np.float32(MAX_CODE)


def _round(values: Floats) -> tuple[Floats, Floats]:
    scales = _scales(values)
    divisors = np.where(scales > 0, scales, np.float32(1))
    codes = np.divide(values, divisors, dtype=np.float32)
    np.rint(codes, out=codes)
    # A subnormal scale is too coarse for its row: the quotient may pass the last code.
    return np.clip(codes, -MAX_CODE, MAX_CODE, out=codes), scales
