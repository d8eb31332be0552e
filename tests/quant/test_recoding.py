"""Other codes for the same weights: equal to the last bit where they are possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsconv.quant.integer import Quantized, Scheme
from dsconv.quant.recoding import can_recode, recode
from dsconv.quant.rounding import dequantize

SCHEMES = [
    Scheme(bits, group_size, symmetric)
    for bits, group_size, symmetric in itertools.product((4, 8), (16, 32, 64, -1), (True, False))
]


def random_matrix(scheme: Scheme, rows: int, columns: int) -> Quantized:
    """Every code and zero point that the scheme has, the extreme ones in one group."""
    rng = np.random.default_rng(0)
    top = scheme.max_code
    codes = rng.integers(0, top + 1, (rows, columns)).astype(np.uint8)
    zeros = rng.integers(0, top + 1, (rows, scheme.groups(columns))).astype(np.uint8)
    codes[0, :2], zeros[0, 0], zeros[1, 0], codes[1, :2] = (0, top), 0, top, (0, top)
    scales = rng.uniform(-1, 1, zeros.shape).astype(np.float16)
    return Quantized(codes, scales, None if scheme.symmetric else zeros, scheme)


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
        np.testing.assert_array_equal(dequantize(again), dequantize(matrix))
        recoded += 1
    assert recoded > 50


@pytest.mark.parametrize(
    ("old", "new", "columns", "possible"),
    [
        (Scheme(4, 32), Scheme(4, 32), 64, True),
        (Scheme(4, 32, False), Scheme(8, 32), 64, True),
        (Scheme(4, 32), Scheme(4, 16, False), 64, True),
        (Scheme(4, -1, False), Scheme(4, 16, False), 48, True),
        (Scheme(8, 32, False), Scheme(8, 32), 64, False),  # code - zero reaches ±255
        (Scheme(4, 32, False), Scheme(4, 32), 64, False),  # and here ±15
        (Scheme(8, 32), Scheme(4, 32, False), 64, False),
        (Scheme(4, 16), Scheme(4, 32), 64, False),  # two scales do not become one
        (Scheme(4, 32), Scheme(4, -1), 64, False),
        (Scheme(4, -1), Scheme(4, 32), 48, False),
        (Scheme(4, 32), Scheme(4, 16), 48, False),  # the last group is shorter
    ],
    ids=str,
)
def test_what_is_possible(old: Scheme, new: Scheme, columns: int, possible: bool) -> None:
    assert can_recode(old, new, columns) == possible
