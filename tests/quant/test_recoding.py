"""Other codes for the same weights: equal to the last bit where they are possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.recoding import can_recode, recode

SCHEMES = [
    IntegerScheme(bits, group_size, symmetric)
    for bits, group_size, symmetric in itertools.product((4, 8), (16, 32, 64, -1), (True, False))
]


def random_matrix(scheme: IntegerScheme, rows: int, columns: int) -> IntegerMatrix:
    """Every code and zero point that the scheme has, the extreme ones in one group."""
    rng = np.random.default_rng(0)
    top = scheme.max_code
    codes = rng.integers(0, top + 1, (rows, columns)).astype(np.uint8)
    zeros = rng.integers(0, top + 1, (rows, scheme.groups(columns))).astype(np.uint8)
    codes[0, :2], zeros[0, 0], zeros[1, 0], codes[1, :2] = (0, top), 0, top, (0, top)
    scales = rng.uniform(-1, 1, zeros.shape).astype(np.float16)
    return IntegerMatrix(codes, scales, None if scheme.symmetric else zeros, scheme)


@pytest.mark.parametrize("columns", [128, 96])
def test_what_can_be_recoded_keeps_every_weight(columns: int) -> None:
    recoded = 0
    for wished, new in itertools.product(SCHEMES, SCHEMES):
        old = wished.for_columns(columns)
        if not can_recode(old, new, columns):
            continue
        matrix = random_matrix(old, 5, columns)
        again = recode(matrix, new)
        assert again.scheme == new
        assert again.scales.shape == (5, new.groups(columns))
        assert (again.zeros is None) == new.symmetric
        assert int(again.codes.max()) <= new.max_code
        np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())
        recoded += 1
    assert recoded > 50


@pytest.mark.parametrize(
    ("old", "new", "columns", "possible"),
    [
        (IntegerScheme(4, 32), IntegerScheme(4, 32), 64, True),
        (IntegerScheme(4, 32, False), IntegerScheme(8, 32), 64, True),
        (IntegerScheme(4, 32), IntegerScheme(4, 16, False), 64, True),
        (IntegerScheme(4, -1, False), IntegerScheme(4, 16, False), 48, True),
        (IntegerScheme(8, 32, False), IntegerScheme(8, 32), 64, False),  # code - zero reaches ±255
        (IntegerScheme(4, 32, False), IntegerScheme(4, 32), 64, False),  # and here ±15
        (IntegerScheme(8, 32), IntegerScheme(4, 32, False), 64, False),
        (IntegerScheme(4, 16), IntegerScheme(4, 32), 64, False),  # two scales do not become one
        (IntegerScheme(4, 32), IntegerScheme(4, -1), 64, False),
        (IntegerScheme(4, -1), IntegerScheme(4, 32), 48, False),
        (IntegerScheme(4, 32), IntegerScheme(4, 16), 48, False),  # the last group is shorter
    ],
    ids=str,
)
def test_what_is_possible(
    old: IntegerScheme, new: IntegerScheme, columns: int, possible: bool
) -> None:
    assert can_recode(old, new, columns) == possible
