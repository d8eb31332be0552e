"""The table of schemes, and their words for manifests and recipes: `int4-g32`, `int8-row-zero`,
`scale-min-4`, `w8a8`.
"""

from __future__ import annotations

from dsconv.errors import InputError

from .int8_rows import Int8Rows
from .integer import IntegerScheme
from .scale_min import ScaleMin
from .schemes import Scheme

SCHEMES: tuple[type[Scheme], ...] = (IntegerScheme, ScaleMin, Int8Rows)
FLOAT = "float"


def label_of(scheme: Scheme | None) -> str:
    return FLOAT if scheme is None else scheme.label


def parse_label(label: str) -> Scheme | None:
    """Inverse of `label_of`.

    Raises:
        InputError: not such a word.
    """
    if label == FLOAT:
        return None
    for kind in SCHEMES:
        if (scheme := kind.parse(label)) is not None:
            return scheme
    raise InputError(f"{label!r} is not a scheme", "write e.g. int4-g32, scale-min-4 or float")
