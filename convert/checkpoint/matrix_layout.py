"""How a quantized matrix lies in safetensors, and what the config says of it: a class per scheme.

The integer schemes are stored as compressed-tensors stores them, scale and minimum under names of
its own; all are described in docs/quantized-checkpoint.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.safetensors import PlannedTensor
from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.quant.int8_rows import Int8Rows, Int8RowsMatrix
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.packing import (
    pack_bits,
    pack_rows,
    pack_zero_points,
    packed_row_bytes,
    unpack_bits,
    unpack_rows,
    unpack_zero_points,
)
from dsconv.quant.scale_min import STEP_BITS, ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import WHOLE_ROW, QuantizedMatrix, Scheme

from .tensors import TensorSource

SHAPE = "weight_shape"  # of the whole matrix; compressed-tensors wants it
FORMAT, ROWS_FORMAT = "pack-quantized", "int-quantized"  # of compressed-tensors
SCALE_MIN = "scale-min"
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "actorder": None}
WEIGHT_ROWS = {**INT8, "strategy": "channel", "dynamic": False}
ACTIVATION_ROWS = {**INT8, "strategy": "token", "dynamic": True}
# Of columns that were rounded in some order and lie as they did: no index of groups is stored.
UNORDERED = (None, False, "static", "weight")
UNUSED: Mapping[str, Any] = {"block_structure": None, "observer": None, "observer_kwargs": {}}

S = TypeVar("S", bound=Scheme)
M = TypeVar("M", bound=QuantizedMatrix)
Array = NDArray[Any]
Kind = tuple[str, str, tuple[int, ...]]  # of a tensor: its last name, dtype, shape
Rows = Callable[
    [str, int, int], Array
]  # of a matrix's tensor: kind, first row, row behind the last


class Storage(ABC, Generic[S, M]):
    """What one scheme's matrices are in a file.

    format: of the config group; is_own: no part of compressed-tensors; has_shape: SHAPE is stored.
    """

    format: ClassVar[str] = FORMAT
    is_own: ClassVar[bool] = False
    has_shape: ClassVar[bool] = False

    @abstractmethod
    def kinds(self, scheme: S, rows: int, columns: int) -> list[Kind]:
        """The tensors of a matrix, codes first, without SHAPE."""

    @abstractmethod
    def encode(self, matrix: M) -> dict[str, Array]:
        """Kind of tensor -> the bytes of these rows."""

    @abstractmethod
    def read(self, tensor: Rows, scheme: S, columns: int, start: int, stop: int) -> M:
        """Rows [start, stop) of a matrix."""

    @abstractmethod
    def group(self, scheme: S) -> dict[str, Any]:
        """The config group, without its targets."""

    @abstractmethod
    def read_group(self, group: ConfigReader) -> S:
        """Inverse of `group`.

        Raises:
            InputError, UnsupportedError: no such scheme.
        """


class _IntegerStorage(Storage[IntegerScheme, IntegerMatrix]):
    has_shape = True

    def kinds(self, scheme: IntegerScheme, rows: int, columns: int) -> list[Kind]:
        groups, words = scheme.groups(columns), packed_row_bytes(columns, scheme.bits) // 4
        kinds: list[Kind] = [
            ("weight_packed", "I32", (rows, words)),
            ("weight_scale", "F16", (rows, groups)),
        ]
        if not scheme.symmetric:
            kinds.append(("weight_zero_point", "I32", (-(-rows * scheme.bits // 32), groups)))
        return kinds

    def encode(self, matrix: IntegerMatrix) -> dict[str, Array]:
        bits = matrix.scheme.bits
        arrays: dict[str, Array] = {
            "weight_packed": pack_rows(matrix.codes, bits),
            "weight_scale": matrix.scales,
        }
        if matrix.zeros is not None:
            arrays["weight_zero_point"] = pack_zero_points(matrix.zeros, bits)
        return arrays

    def read(
        self, tensor: Rows, scheme: IntegerScheme, columns: int, start: int, stop: int
    ) -> IntegerMatrix:
        packed = tensor("weight_packed", start, stop).view(np.uint8)
        codes = unpack_rows(packed, scheme.bits, columns)
        scales = tensor("weight_scale", start, stop).astype(np.float16)
        zeros = None if scheme.symmetric else _zero_points(tensor, scheme.bits, start, stop)
        return IntegerMatrix(codes, scales, zeros, scheme)

    def group(self, scheme: IntegerScheme) -> dict[str, Any]:
        whole_row = scheme.group_size == WHOLE_ROW
        return {
            "format": FORMAT,
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": scheme.symmetric,
                "strategy": "channel" if whole_row else "group",
                "group_size": None if whole_row else scheme.group_size,
                "dynamic": False,
                "actorder": None,
                **UNUSED,
            },
        }

    def read_group(self, group: ConfigReader) -> IntegerScheme:
        weights = _weights(group)
        kind, strategy = weights.string("type", "int"), weights.string("strategy", "group")
        order = weights.data.get("actorder")
        if kind != "int" or strategy not in ("group", "channel") or order not in UNORDERED:
            raise UnsupportedError(
                f"{weights.where}: type {kind}, strategy {strategy}, actorder {order}",
                "supported: type int, strategy group or channel, no actorder",
            )
        size = weights.integer("group_size") if strategy == "group" else WHOLE_ROW
        bits, symmetric = weights.integer("num_bits"), weights.boolean("symmetric", True)
        try:
            return IntegerScheme(bits, size, symmetric)
        except UsageError as error:
            raise InputError(f"{weights.where}: {error}", "supported: 4 or 8 bits") from error


class _ScaleMinStorage(Storage[ScaleMin, ScaleMinMatrix]):
    is_own = True

    def kinds(self, scheme: ScaleMin, rows: int, columns: int) -> list[Kind]:
        steps, units = -(-scheme.groups(columns) * STEP_BITS // 8), scheme.super_blocks(columns)
        return [
            ("weight_codes", "U8", (rows, -(-columns * scheme.bits // 8))),
            ("weight_scale_steps", "U8", (rows, steps)),
            ("weight_minimum_steps", "U8", (rows, steps)),
            ("weight_super_scale", "F16", (rows, units)),
            ("weight_super_minimum", "F16", (rows, units)),
        ]

    def encode(self, matrix: ScaleMinMatrix) -> dict[str, Array]:
        return {
            "weight_codes": pack_bits(matrix.codes, matrix.scheme.bits),
            "weight_scale_steps": pack_bits(matrix.scale_steps, STEP_BITS),
            "weight_minimum_steps": pack_bits(matrix.minimum_steps, STEP_BITS),
            "weight_super_scale": matrix.super_scales,
            "weight_super_minimum": matrix.super_minima,
        }

    def read(
        self, tensor: Rows, scheme: ScaleMin, columns: int, start: int, stop: int
    ) -> ScaleMinMatrix:
        groups = scheme.groups(columns)
        return ScaleMinMatrix(
            unpack_bits(tensor("weight_codes", start, stop), scheme.bits, columns),
            unpack_bits(tensor("weight_scale_steps", start, stop), STEP_BITS, groups),
            unpack_bits(tensor("weight_minimum_steps", start, stop), STEP_BITS, groups),
            tensor("weight_super_scale", start, stop).astype(np.float16),
            tensor("weight_super_minimum", start, stop).astype(np.float16),
            scheme,
        )

    def group(self, scheme: ScaleMin) -> dict[str, Any]:
        weights = {"num_bits": scheme.bits, "type": SCALE_MIN, "group_size": scheme.group_size}
        return {"weights": weights}

    def read_group(self, group: ConfigReader) -> ScaleMin:
        weights = _weights(group)
        weights.string("strategy", "group")  # the groups are of one kind; no text is damage
        bits, size = weights.integer("num_bits"), weights.integer("group_size")
        if size != ScaleMin.group_size:
            raise UnsupportedError(
                f"{weights.where}: groups of {size} with scale and minimum",
                f"supported: {ScaleMin.group_size}",
            )
        try:
            return ScaleMin(bits)
        except UsageError as error:
            raise InputError(f"{weights.where}: {error}", "supported: 3 to 6 bits") from error


class _Int8RowsStorage(Storage[Int8Rows, Int8RowsMatrix]):
    format = ROWS_FORMAT

    def kinds(self, scheme: Int8Rows, rows: int, columns: int) -> list[Kind]:
        return [("weight", "I8", (rows, columns)), ("weight_scale", "F32", (rows, 1))]

    def encode(self, matrix: Int8RowsMatrix) -> dict[str, Array]:
        return {"weight": matrix.codes, "weight_scale": matrix.scales}

    def read(
        self, tensor: Rows, scheme: Int8Rows, columns: int, start: int, stop: int
    ) -> Int8RowsMatrix:
        scales = tensor("weight_scale", start, stop).astype(np.float32)
        return Int8RowsMatrix(tensor("weight", start, stop), scales)

    def group(self, scheme: Int8Rows) -> dict[str, Any]:
        return {
            "format": ROWS_FORMAT,
            "input_activations": {**ACTIVATION_ROWS, **UNUSED},
            "output_activations": None,
            "weights": {**WEIGHT_ROWS, **UNUSED},
        }

    def read_group(self, group: ConfigReader) -> Int8Rows:
        """Nothing but int8 weights per channel and dynamic int8 inputs per token."""
        wanted = {"weights": WEIGHT_ROWS, "input_activations": ACTIVATION_ROWS}
        for part, settings in wanted.items():
            found = group.child(part)
            if found is None:
                raise group.fail(part, "missing")
            for key, value in settings.items():
                if found.data.get(key) != value:
                    raise UnsupportedError(
                        f"{found.where}: {key} {found.data.get(key)!r} in format {ROWS_FORMAT}",
                        f"supported: {value!r}",
                    )
        if group.has("output_activations"):
            raise UnsupportedError(
                f"{group.where}: quantized outputs are not supported", "supported: inputs only"
            )
        return Int8Rows()


STORAGE: dict[type[Scheme], Storage[Any, Any]] = {
    IntegerScheme: _IntegerStorage(),
    ScaleMin: _ScaleMinStorage(),
    Int8Rows: _Int8RowsStorage(),
}


def storage_of(scheme: Scheme) -> Storage[Any, Any]:
    return STORAGE[type(scheme)]


def read_scheme(group: ConfigReader, form: str) -> Scheme:
    """The scheme of a config group of FORMAT or ROWS_FORMAT.

    Raises:
        InputError, UnsupportedError: none of ours.
    """
    if form == ROWS_FORMAT:
        kind: type[Scheme] = Int8Rows
    else:
        own = _weights(group).string("type", "int") == SCALE_MIN
        kind = ScaleMin if own else IntegerScheme
    scheme: Scheme = STORAGE[kind].read_group(group)
    return scheme


def _weights(group: ConfigReader) -> ConfigReader:
    """Of a group that leaves activations as they are."""
    if group.has("input_activations") or group.has("output_activations"):
        raise UnsupportedError(
            f"{group.where}: quantized activations are not supported in format {FORMAT}",
            f"supported: format {ROWS_FORMAT}, or weights only",
        )
    weights = group.child("weights")
    if weights is None:
        raise group.fail("weights", "missing")
    return weights


def stored_tensors(module: str, shape: tuple[int, int], scheme: Scheme) -> list[PlannedTensor]:
    """The tensors of a matrix [rows, columns], codes first, without SHAPE."""
    kinds = storage_of(scheme).kinds(scheme, *shape)
    return [PlannedTensor(f"{module}.{kind}", dtype, size) for kind, dtype, size in kinds]


def has_shape_tensor(scheme: Scheme) -> bool:
    return storage_of(scheme).has_shape


def encode(quantized: QuantizedMatrix) -> dict[str, Array]:
    """Kind of tensor -> the bytes of these rows."""
    return storage_of(quantized.scheme).encode(quantized)


def read_quantized(
    source: TensorSource, module: str, scheme: Scheme, columns: int, start: int, stop: int
) -> QuantizedMatrix:
    """Rows [start, stop) of a matrix."""
    read = storage_of(scheme).read
    matrix: QuantizedMatrix = read(_tensors(source, module), scheme, columns, start, stop)
    return matrix


def read_zero_points(
    source: TensorSource, module: str, scheme: Scheme, start: int, stop: int
) -> NDArray[np.uint8]:
    """-> [stop - start, groups] of a matrix that has them."""
    return _zero_points(_tensors(source, module), scheme.bits, start, stop)


def _tensors(source: TensorSource, module: str) -> Rows:
    return lambda kind, start, stop: source.rows(f"{module}.{kind}", start, stop)


def _zero_points(tensor: Rows, bits: int, start: int, stop: int) -> NDArray[np.uint8]:
    per_word = 32 // bits  # rows that share one word
    first, last = start // per_word, -(-stop // per_word)
    words = tensor("weight_zero_point", first, last)
    zeros = unpack_zero_points(words, bits, len(words) * per_word)
    return zeros[start - first * per_word : stop - first * per_word]
