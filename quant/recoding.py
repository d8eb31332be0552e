"""Other codes for the same weights: nothing is rounded, every product stays what it was.

A group may be split, each part with a copy of its scale; codes may be counted from another zero
and may get more bits. So int4 with zero points, whose code - zero lies in -15..15, is also int8
without.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .integer import WHOLE_ROW, IntegerMatrix, IntegerScheme


def can_recode(old: IntegerScheme, new: IntegerScheme, columns: int) -> bool:
    """Whether every matrix of `old` with rows of this length has codes in `new`."""
    if old.group_size != new.group_size:
        length = columns if old.group_size == WHOLE_ROW else old.group_size
        if new.group_size == WHOLE_ROW or length % new.group_size or columns % length:
            return False
    lowest, highest = _span(old)
    if not new.symmetric:  # the zero points come along
        return new.bits >= old.bits
    return lowest >= -new.zero and highest <= new.max_code - new.zero


def _span(scheme: IntegerScheme) -> tuple[int, int]:
    """The smallest and largest code - zero."""
    if scheme.symmetric:
        return -scheme.zero, scheme.max_code - scheme.zero
    return -scheme.max_code, scheme.max_code


def recode(quantized: IntegerMatrix, scheme: IntegerScheme) -> IntegerMatrix:
    """The same weights in `scheme`, which `can_recode` has allowed."""
    old, codes, scales = quantized.scheme, quantized.codes, quantized.scales
    zeros, columns = quantized.zeros, codes.shape[1]
    if zeros is None:
        zeros = np.full(scales.shape, old.zero, np.uint8)
    if scheme.symmetric:
        length = columns if old.group_size == WHOLE_ROW else old.group_size
        centre = np.repeat(zeros.astype(np.int16), length, axis=1)[:, :columns]
        codes = (codes - centre + scheme.zero).astype(np.uint8)
    copies = scheme.groups(columns) // old.groups(columns)
    return replace(
        quantized,
        codes=codes,
        scales=np.repeat(scales, copies, axis=1),
        zeros=None if scheme.symmetric else np.repeat(zeros, copies, axis=1),
        scheme=scheme,
    )
