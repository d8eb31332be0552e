"""Every scheme of the table keeps the promises that the rest of dsconv relies on."""

from __future__ import annotations

import numpy as np
import pytest

from dsconv.convert.checkpoint.matrix_layout import STORAGE
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.labels import SCHEMES, label_of, parse_label
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import METHODS, WHOLE_ROW, Floats, QuantizedMatrix, Scheme, joined

EXAMPLES: tuple[Scheme, ...] = (
    *(IntegerScheme(4, 32), IntegerScheme(4, 128, False), IntegerScheme(8, 16)),
    *(IntegerScheme(8, WHOLE_ROW), IntegerScheme(4, WHOLE_ROW, False)),
    *map(ScaleMin, (3, 4, 5, 6)),
    Int8Rows(),
)
SHAPES = ((1, 1), (3, 31), (5, 32), (7, 33), (2, 256), (9, 300), (4, 1000))

every_scheme = pytest.mark.parametrize("scheme", EXAMPLES, ids=lambda scheme: scheme.label)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(rows: int, columns: int) -> Floats:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns), np.float32)


def assert_equal(found: QuantizedMatrix, wanted: QuantizedMatrix) -> None:
    assert found.scheme == wanted.scheme
    assert vars(found).keys() == vars(wanted).keys()
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(vars(found)[name], value, name)


def test_every_scheme_has_an_example_and_a_place_in_files() -> None:
    assert {type(scheme) for scheme in EXAMPLES} == set(SCHEMES) == set(STORAGE)


@every_scheme
def test_labels_there_and_back(scheme: Scheme) -> None:
    assert parse_label(label_of(scheme)) == scheme
    assert [kind for kind in SCHEMES if kind.parse(scheme.label) is not None] == [type(scheme)]


def test_labels_and_descriptions_tell_schemes_apart() -> None:
    assert len({scheme.label for scheme in EXAMPLES}) == len(EXAMPLES)
    assert len({scheme.description for scheme in EXAMPLES}) == len(EXAMPLES)


@every_scheme
@every_shape
def test_facts_fit_together(scheme: Scheme, shape: tuple[int, int]) -> None:
    columns = shape[1]
    assert scheme.max_code < 1 << scheme.bits
    assert 0 <= scheme.zero <= scheme.max_code
    assert scheme.symmetric + scheme.has_zero_points + scheme.has_minima == 1
    groups, length = scheme.groups(columns), scheme.group_length(columns)
    assert (groups - 1) * length < columns <= groups * length
    fitting = scheme.for_columns(columns)
    assert type(fitting) is type(scheme)
    assert fitting.for_columns(columns) == fitting


@every_scheme
@every_shape
@pytest.mark.parametrize("method", METHODS)
def test_every_weight_lies_within_a_step(
    method: str, scheme: Scheme, shape: tuple[int, int]
) -> None:
    weights = normal(*shape)
    found = METHODS[method](weights, scheme)
    assert found.scheme == scheme
    assert found.codes.shape == shape
    restored = found.dequantize()
    assert restored.dtype == np.float32
    # A symmetric step covers the row's largest magnitude in half the codes; a search may clip.
    step = np.abs(weights).max() / (1 << (scheme.bits - 1))
    largest = np.abs(restored - weights).max()
    assert largest <= (1 if method == "rtn" else 6) * step * 1.1


@every_scheme
@every_shape
@pytest.mark.parametrize("method", METHODS)
def test_slices_of_rows_are_the_rows_of_the_whole(
    method: str, scheme: Scheme, shape: tuple[int, int]
) -> None:
    weights = normal(*shape)
    whole = METHODS[method](weights, scheme)
    parts = [METHODS[method](weights[i : i + 2], scheme) for i in range(0, len(weights), 2)]
    assert_equal(joined(parts), whole)


@every_scheme
@every_shape
def test_a_grid_stands_for_what_its_codes_dequantize_to(
    scheme: Scheme, shape: tuple[int, int]
) -> None:
    grid = scheme.grid(normal(*shape))
    codes = np.random.default_rng(0).integers(0, scheme.max_code + 1, shape)
    matrix = grid.with_codes(codes)
    length = scheme.group_length(shape[1])
    scales, zeros, minima = (
        None if value is None else np.repeat(value, length, axis=1)[:, : shape[1]]
        for value in grid.values()
    )
    assert scales is not None
    wanted = scales * (codes - zeros)
    if minima is not None:
        wanted = wanted - minima
    np.testing.assert_allclose(matrix.dequantize(), wanted, rtol=1e-5, atol=1e-6)


@every_scheme
@every_shape
def test_gptq_on_inputs_that_do_not_correlate_is_the_search(
    scheme: Scheme, shape: tuple[int, int]
) -> None:
    """Nothing corrects anything then; sums in another order may turn a tie of two scales."""
    weights = normal(*shape)
    factor = factorize([np.eye(shape[1], dtype=np.float32)], scheme)
    found, wanted = (
        float(np.square(matrix.dequantize() - weights).sum())
        for matrix in (gptq(weights, factor, scheme), scheme.search(weights))
    )
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-9)


@every_scheme
@every_shape
def test_units_are_what_tuning_may_change(scheme: Scheme, shape: tuple[int, int]) -> None:
    matrix = scheme.search(normal(*shape))
    if not scheme.tunable:
        with pytest.raises(TypeError):
            matrix.units()
        return
    units = matrix.units()
    assert_equal(matrix.with_units(units.values), matrix)
    doubled = matrix.with_units([2 * values for values in units.values])
    np.testing.assert_allclose(doubled.dequantize(), 2 * matrix.dequantize(), rtol=1e-6)
    for values, steps in zip(units.values, units.steps, strict=True):
        groups = scheme.groups(shape[1])
        assert steps.shape == (shape[0], groups)
        assert values.shape == (shape[0], -(-groups // units.groups))


def test_a_matrix_of_another_class_is_refused() -> None:
    matrix = Int8Rows().search(normal(2, 32))
    assert type(matrix).of(matrix) is matrix
    with pytest.raises(TypeError, match="w8a8"):
        type(IntegerScheme(4, 32).search(normal(2, 32))).of(matrix)
