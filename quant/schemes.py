"""Schemes as short words for manifests and recipes: `int4-g32`, `int8-row-zero`, `scale-min-4`,
`w8a8`.
"""

from __future__ import annotations

import re

from dsconv.errors import InputError

from .int8_rows import Int8Rows
from .integer import WHOLE_ROW, IntegerScheme
from .rounding import AnyScheme
from .scale_min import ScaleMin

FLOAT = "float"
INT8_ROWS = "w8a8"


def label_of(scheme: AnyScheme | None) -> str:
    """`-zero` marks stored zero points."""
    if scheme is None:
        return FLOAT
    if isinstance(scheme, ScaleMin):
        return f"scale-min-{scheme.bits}"
    if isinstance(scheme, Int8Rows):
        return INT8_ROWS
    group = "row" if scheme.group_size == WHOLE_ROW else f"g{scheme.group_size}"
    return f"int{scheme.bits}-{group}" + ("" if scheme.symmetric else "-zero")


def parse_label(label: str) -> AnyScheme | None:
    """Inverse of `label_of`.

    Raises:
        InputError: not such a word.
    """
    if label == FLOAT:
        return None
    if label == INT8_ROWS:
        return Int8Rows()
    match = re.fullmatch(r"scale-min-(\d+)|int(\d+)-(?:g(\d+)|row)(-zero)?", label)
    if match is None:
        raise InputError(f"{label!r} is not a scheme", "write e.g. int4-g32, scale-min-4 or float")
    if match[1]:
        return ScaleMin(int(match[1]))
    return IntegerScheme(int(match[2]), int(match[3] or WHOLE_ROW), match[4] is None)
