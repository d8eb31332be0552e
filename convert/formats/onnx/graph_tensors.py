"""A checkpoint's tensors taken back out of what a graph has in another order: the inverse of
`weights.py`.

A matrix [rows, columns] lies as [columns, rows]: codes with scales and zero points, or float16. All
are read when rows are asked for, and only the columns that hold them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files.safetensors import DTYPES, TensorInfo, read_columns, read_rows
from dsconv.quant.packing import pack_rows, pack_zero_points, packed_row_bytes
from dsconv.quant.schemes import WHOLE_ROW, Scheme

NIBBLES = ("INT4", "UINT4")  # two elements in a byte, the first one low; rows are not padded


@dataclass(frozen=True)
class Stored:
    """An initializer of a graph: element type in this package's words, and where its bytes lie."""

    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        count = math.prod(self.shape)
        return -(-count // 2) if self.kind in NIBBLES else count * DTYPES[self.kind].itemsize

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Columns [start, stop) of a matrix, or elements of a vector; nibbles as bytes."""
        stop = self.shape[-1] if stop is None else stop
        if self.kind not in NIBBLES:
            return _read(self._info(self.kind, self.shape), start, stop)
        *above, width = self.shape
        if width % 2:  # a row may begin in the middle of a byte
            count = math.prod(self.shape)
            flat = _both(_read(self._info("U8", (self.nbytes,)), 0, self.nbytes))
            return flat[:count].reshape(self.shape)[..., start:stop]
        first = start // 2
        packed = _read(self._info("U8", (*above, width // 2)), first, -(-stop // 2))
        return _both(packed)[..., start - 2 * first : stop - 2 * first]

    def _info(self, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(self.path.name, dtype, shape, self.path, self.offset)


def _read(info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
    read = read_rows if len(info.shape) == 1 else read_columns
    return read(info, start, stop)


def _both(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., n] bytes -> [..., 2 n] nibbles."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


class Derived(ABC):
    """A tensor of the checkpoint that is made from initializers."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """That it takes in a checkpoint."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]: ...


class Float(Derived):
    """A float tensor, as it is or transposed."""

    def __init__(self, stored: Stored, transposed: bool) -> None:
        self._stored, self._transposed = stored, transposed
        self.dtype = stored.kind
        self.shape = stored.shape[::-1] if transposed else stored.shape

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        if self._transposed:
            return np.ascontiguousarray(self._stored.read(start, stop).T)
        return self._stored.read()[start:stop]


class Codes(Derived):
    """`weight_packed`."""

    dtype = "I32"

    def __init__(self, stored: Stored, scheme: Scheme) -> None:
        columns, rows = stored.shape
        self._stored, self._bits = stored, scheme.bits
        # Symmetric codes are signed in a graph, around 0.
        self._zero = np.uint8(1 << (scheme.bits - 1) if scheme.symmetric else 0)
        self.shape = (rows, packed_row_bytes(columns, scheme.bits) // 4)

    def rows(self, start: int, stop: int) -> NDArray[np.int32]:
        signed = self._stored.read(start, stop).view(np.uint8).T
        codes = (signed + self._zero) & np.uint8((1 << self._bits) - 1)  # wraps
        return pack_rows(np.ascontiguousarray(codes), self._bits).view(np.int32)


class Scales(Derived):
    """`weight_scale`."""

    dtype = "F16"

    def __init__(self, stored: Stored, scheme: Scheme) -> None:
        self._stored, self._whole = stored, scheme.group_size == WHOLE_ROW
        self.shape = (stored.shape[-1], 1 if self._whole else stored.shape[0])

    def rows(self, start: int, stop: int) -> NDArray[np.float16]:
        scales = self._stored.read(start, stop).astype(np.float16)
        return scales[:, None] if self._whole else np.ascontiguousarray(scales.T)


class ZeroPoints(Derived):
    """`weight_zero_point`."""

    dtype = "I32"

    def __init__(self, stored: Stored, scheme: Scheme) -> None:
        self._stored, self._bits = stored, scheme.bits
        self._whole = scheme.group_size == WHOLE_ROW
        groups = 1 if self._whole else stored.shape[0]
        self.shape = (-(-stored.shape[-1] * scheme.bits // 32), groups)

    def rows(self, start: int, stop: int) -> NDArray[np.int32]:
        per_word = 32 // self._bits
        zeros = self._stored.read(start * per_word, min(stop * per_word, self._stored.shape[-1]))
        by_row = zeros[:, None] if self._whole else zeros.T
        return pack_zero_points(np.ascontiguousarray(by_row), self._bits)


class Shape(Derived):
    """`weight_shape`: of the whole matrix."""

    dtype = "I64"
    shape = (2,)

    def __init__(self, rows: int, columns: int) -> None:
        self._values = np.array([rows, columns], np.int64)

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._values[start:stop]
