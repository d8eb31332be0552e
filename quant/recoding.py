"""Other codes for the same weights: nothing is rounded, every product stays what it was.

A group may be split, each part with a copy of its scale; codes may be counted from another zero
and may get more bits. So int4 with zero points, whose code - zero lies in -15..15, is also int8
without.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .integer import IntegerMatrix, IntegerScheme
from .schemes import WHOLE_ROW, QuantizedMatrix, Scheme


def can_recode(old: Scheme, new: Scheme, columns: int) -> bool:
    """Whether every matrix of `old` with rows of this length has codes in `new`."""
    if not (old.is_plain and new.is_plain):
        return False
    if old.group_size != new.group_size:
        length = old.group_length(columns)
        if new.group_size == WHOLE_ROW or length % new.group_size or columns % length:
            return False
    lowest, highest = _span(old)
    if not new.symmetric:  # the zero points come along
        return new.bits >= old.bits
    return lowest >= -new.zero and highest <= new.max_code - new.zero


def _span(scheme: Scheme) -> tuple[int, int]:
    """The smallest and largest code - zero."""
    if scheme.symmetric:
        return -scheme.zero, scheme.max_code - scheme.zero
    return -scheme.max_code, scheme.max_code


def recode(quantized: QuantizedMatrix, scheme: Scheme) -> IntegerMatrix:
    """The same weights in `scheme`, which `can_recode` has allowed."""
    matrix = IntegerMatrix.of(quantized)
    old, codes, scales = matrix.scheme, matrix.codes, matrix.scales
    zeros, columns = matrix.zeros, codes.shape[1]
    if zeros is None:
        zeros = np.full(scales.shape, old.zero, np.uint8)
    if scheme.symmetric:
        centre = np.repeat(zeros.astype(np.int16), old.group_length(columns), axis=1)[:, :columns]
        codes = (codes - centre + scheme.zero).astype(np.uint8)
    copies = scheme.groups(columns) // old.groups(columns)
    return replace(
        matrix,
        codes=codes,
        scales=np.repeat(scales, copies, axis=1),
        zeros=None if scheme.symmetric else np.repeat(zeros, copies, axis=1),
        scheme=IntegerScheme(scheme.bits, scheme.group_size, scheme.symmetric),
    )
