"""Matrices in the byte order of the native kernels (runtime/native/linear/linear.h), and back.

A matrix [rows, cols] is a sequence of blocks of 16 rows; the last one is padded with rows of zero
bytes. Every block has the same size, rounded up to whole cache lines (64 bytes), and is written
group by group. A *vector* is 64 bytes, byte 4 * row + i of it belonging to input i of four
consecutive inputs (a *quad*) of that row of the block: what one instruction multiplies.

**Planes of codes.** A plane holds b bits (8, 4, 2 or 1) of every code of a group. A byte of a
vector of the plane holds those of 8/b quads: quad 8/b * v + i in bits [b * i, b * (i + 1)) of
vector v. Codes of 8 bits are one plane of 8, 4 bits one of 4, 3 bits a plane of 2 (the low bits)
and one of 1, 5 bits a plane of 4 and one of 1, 6 bits a plane of 4 and one of 2.

**int4, int8** (w = scale * (code - zero)): for each group its codes; 16 float16 scales; where zero
points are stored 16 of them: bytes, or for int4 8 bytes, row i in the low and row i + 8 in the high
nibble. The last group of a row may be shorter: it is padded to a multiple of 8 inputs. The whole
row can be one group.

**scale_min3 to 6** (w = unit * step * code - the same of minima, quant/scale_min.py): for each
super-block 16 float16 units of the scales and 16 of the minima; then for each of its groups of 32
the planes of its codes; 16 bytes with the scale step in bits 0 to 5 and the low two bits of the
minimum step above; 8 bytes with the other four bits of the minimum step, row i in the low and
row i + 8 in the high nibble. The last group is padded to 32 inputs.

**float16, bfloat16**: for each input the 16 values of the rows.

Padding holds zero bytes; it meets activations of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import WHOLE_ROW, QuantizedMatrix, Scheme

BLOCK_ROWS = 16
ALIGNMENT = 64
# Bits of the planes that hold codes of so many bits, low bits first.
PLANES = {3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
# The numbers of LinearKind in runtime/native/linear/linear.h.
KINDS = {
    "int4": 4,
    "int8": 8,
    "scale_min3": 19,
    "scale_min4": 20,
    "scale_min5": 21,
    "scale_min6": 22,
    "float16": 32,
    "bfloat16": 33,
}

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
Packable = QuantizedMatrix | NDArray[np.float16] | NDArray[ml_dtypes.bfloat16]


@dataclass(frozen=True)
class LinearLayout:
    """What a run of bytes holds: the fields of LinearView.

    group_size: 0 stands for the whole row; ignored but for int4 and int8.
    """

    kind: str
    rows: int
    cols: int
    group_size: int = 0
    zero_points: bool = False

    SCALES: ClassVar[int] = 2 * BLOCK_ROWS

    @classmethod
    def of(cls, matrix: Packable) -> LinearLayout:
        if isinstance(matrix, np.ndarray):
            rows, cols = matrix.shape
            return cls(matrix.dtype.name, rows, cols)
        return cls.of_scheme(matrix.scheme, *matrix.codes.shape)

    @classmethod
    def of_scheme(cls, scheme: Scheme, rows: int, cols: int) -> LinearLayout:
        if scheme.has_minima:
            return cls(f"scale_min{scheme.bits}", rows, cols)
        group_size = 0 if scheme.group_size == WHOLE_ROW else scheme.group_size
        return cls(f"int{scheme.bits}", rows, cols, group_size, scheme.has_zero_points)

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK_ROWS)

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return self.blocks * self.block_bytes

    @property
    def block_bytes(self) -> int:
        return _round_up(self._content_bytes, ALIGNMENT)

    @property
    def _content_bytes(self) -> int:
        if self.kind in ("float16", "bfloat16"):
            return self.cols * 2 * BLOCK_ROWS
        if self.kind.startswith("scale_min"):
            scheme = ScaleMin(int(self.kind[-1]))
            groups = scheme.groups(self.cols)
            codes = 32 * scheme.bits * BLOCK_ROWS // 8
            return groups * (codes + 24) + scheme.super_blocks(self.cols) * 2 * self.SCALES
        bits = int(self.kind[-1])
        size = self.group_size or self.cols
        full, rest = divmod(self.cols, size)
        inputs = full * _round_up(size, 8) + _round_up(rest, 8)
        zeros = BLOCK_ROWS * bits // 8 if self.zero_points else 0
        groups = full + (rest > 0)
        return inputs * bits * BLOCK_ROWS // 8 + groups * (self.SCALES + zeros)


def pack_linear(matrix: Packable) -> Bytes:
    """-> uint8 [LinearLayout.of(matrix).size].

    A matrix may be packed in slices of rows, all but the last a multiple of 16: the bytes follow
    one another.
    """
    layout = LinearLayout.of(matrix)
    if isinstance(matrix, np.ndarray):
        blocks = _blocks(matrix.view(np.uint16))  # [blocks, 16, cols]
        content = _as_bytes(blocks.transpose(0, 2, 1))
    else:
        content = CONTENTS[type(matrix.scheme)](matrix)
    padding = layout.block_bytes - content.shape[1]
    return np.pad(content, ((0, 0), (0, padding))).reshape(-1)


def unpack_linear(data: Bytes, layout: LinearLayout) -> Packable:
    """Inverse of `pack_linear`."""
    blocks = data[: layout.size].reshape(layout.blocks, layout.block_bytes)
    content = _Reader(blocks[:, : layout._content_bytes])
    if layout.kind in ("float16", "bfloat16"):
        dtype = np.float16 if layout.kind == "float16" else ml_dtypes.bfloat16
        values = content.take(layout.cols * 2 * BLOCK_ROWS).view(np.uint16)
        values = values.reshape(layout.blocks, layout.cols, BLOCK_ROWS).transpose(0, 2, 1)
        return _rows(values, layout.rows).view(dtype)
    if layout.kind.startswith("scale_min"):
        return _read_scale_min(content, layout)
    return _read_integer(content, layout)


def _integer_content(matrix: IntegerMatrix) -> Bytes:
    """-> [blocks, bytes]"""
    columns = matrix.codes.shape[1]
    codes, scales = _blocks(matrix.codes), _blocks(matrix.scales)
    zeros = None if matrix.zeros is None else _blocks(matrix.zeros)
    size = matrix.scheme.group_length(columns)
    full = columns // size
    parts = []
    for groups, inputs in (
        (slice(0, full), slice(0, full * size)),
        (slice(full, None), slice(full * size, None)),
    ):
        if codes[..., inputs].shape[-1] == 0:
            continue
        some = scales[..., groups]  # [blocks, 16, groups]
        grouped = codes[..., inputs].reshape(*some.shape, -1)
        fields = [_planes(_pad_inputs(grouped, 8), matrix.scheme.bits), _group_values(some)]
        if zeros is not None:
            fields.append(_group_zeros(zeros[..., groups], matrix.scheme.bits))
        record = np.concatenate(fields, axis=-1)  # [blocks, groups, bytes]
        parts.append(record.reshape(len(record), -1))
    return np.concatenate(parts, axis=1)


def _read_integer(content: _Reader, layout: LinearLayout) -> IntegerMatrix:
    bits = int(layout.kind[-1])
    size = layout.group_size or layout.cols
    full, rest = divmod(layout.cols, size)
    codes, scales, zeros = [], [], []
    for width in [size] * full + [rest] * (rest > 0):
        padded = _round_up(width, 8)
        planes = content.take(padded * bits * BLOCK_ROWS // 8)
        codes.append(_read_planes(planes, bits, padded)[..., :width])
        scales.append(content.take(2 * BLOCK_ROWS).view(np.float16))
        if layout.zero_points:
            taken = content.take(BLOCK_ROWS * bits // 8)
            zeros.append(_read_nibbles(taken) if bits == 4 else taken)
    scheme = IntegerScheme(bits, layout.group_size or WHOLE_ROW, not layout.zero_points)
    return IntegerMatrix(
        _rows(np.concatenate(codes, axis=-1), layout.rows),
        _rows(np.stack(scales, axis=-1), layout.rows),
        _rows(np.stack(zeros, axis=-1), layout.rows) if zeros else None,
        scheme,
    )


def _scale_min_content(matrix: ScaleMinMatrix) -> Bytes:
    """-> [blocks, bytes]"""
    scheme = matrix.scheme
    codes = _pad_inputs(_blocks(matrix.codes), scheme.group_size)
    codes = codes.reshape(*codes.shape[:2], -1, scheme.group_size)
    scale_steps, minimum_steps = _blocks(matrix.scale_steps), _blocks(matrix.minimum_steps)
    low = scale_steps | (minimum_steps & 3) << 6
    groups = np.concatenate(
        [
            _planes(codes, scheme.bits),
            low.transpose(0, 2, 1),
            _nibbles((minimum_steps >> np.uint8(2)).transpose(0, 2, 1)),
        ],
        axis=-1,
    )  # [blocks, groups, bytes]
    units = np.concatenate(
        [_group_values(_blocks(matrix.super_scales)), _group_values(_blocks(matrix.super_minima))],
        axis=-1,
    )  # [blocks, super-blocks, 64]
    size = scheme.super_size(matrix.codes.shape[1])
    parts = []
    for block in range(units.shape[1]):
        parts.append(units[:, block])
        members = groups[:, block * size : (block + 1) * size]
        parts.append(members.reshape(len(members), -1))
    return np.concatenate(parts, axis=1)


def _read_scale_min(content: _Reader, layout: LinearLayout) -> ScaleMinMatrix:
    scheme = ScaleMin(int(layout.kind[-1]))
    groups, size = scheme.groups(layout.cols), scheme.super_size(layout.cols)
    codes, scale_steps, minimum_steps, scale_units, minimum_units = [], [], [], [], []
    for group in range(groups):
        if group % size == 0:
            scale_units.append(content.take(2 * BLOCK_ROWS).view(np.float16))
            minimum_units.append(content.take(2 * BLOCK_ROWS).view(np.float16))
        planes = content.take(32 * scheme.bits * BLOCK_ROWS // 8)
        codes.append(_read_planes(planes, scheme.bits, 32))
        low = content.take(BLOCK_ROWS)
        high = _read_nibbles(content.take(BLOCK_ROWS // 2))
        scale_steps.append(low & 63)
        minimum_steps.append(low >> 6 | high << 2)
    rows = layout.rows
    return ScaleMinMatrix(
        _rows(np.concatenate(codes, axis=-1)[..., : layout.cols], rows),
        _rows(np.stack(scale_steps, axis=-1), rows),
        _rows(np.stack(minimum_steps, axis=-1), rows),
        _rows(np.stack(scale_units, axis=-1), rows),
        _rows(np.stack(minimum_units, axis=-1), rows),
        scheme,
    )


# The schemes that have kernels.
CONTENTS: dict[type[Scheme], Callable[[Any], Bytes]] = {
    IntegerScheme: _integer_content,
    ScaleMin: _scale_min_content,
}


class _Reader:
    """Takes columns of [blocks, bytes], from left to right."""

    def __init__(self, content: Bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, count: int) -> Bytes:
        """-> [blocks, count], contiguous."""
        start = self._position
        self._position += count
        return np.ascontiguousarray(self._content[:, start : self._position])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _blocks(values: Array) -> Array:
    """[rows, n] -> [blocks, 16, n], padded with zeros."""
    padding = -len(values) % BLOCK_ROWS
    if padding:
        values = np.pad(values, ((0, padding), (0, 0)))
    return values.reshape(-1, BLOCK_ROWS, values.shape[1])


def _rows(blocks: Array, rows: int) -> Array:
    """Inverse of `_blocks`."""
    return np.ascontiguousarray(blocks.reshape(-1, blocks.shape[-1])[:rows])


def _pad_inputs(codes: Bytes, multiple: int) -> Bytes:
    padding = -codes.shape[-1] % multiple
    if not padding:
        return codes
    return np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)])


def _planes(codes: Bytes, bits: int) -> Bytes:
    """[blocks, 16, groups, inputs] -> [blocks, groups, bytes]"""
    planes, shift = [], 0
    for width in PLANES[bits]:
        values = codes >> np.uint8(shift) & np.uint8((1 << width) - 1)
        shift += width
        quads = values.reshape(*codes.shape[:3], -1, 8 // width, 4)
        plane = quads[..., 0, :].copy()
        for i in range(1, 8 // width):
            plane |= quads[..., i, :] << np.uint8(i * width)
        plane = plane.transpose(0, 2, 3, 1, 4)  # [blocks, groups, vectors, 16, 4]
        planes.append(plane.reshape(*plane.shape[:2], -1))
    joined: Bytes = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
    return joined


def _read_planes(planes: Bytes, bits: int, inputs: int) -> Bytes:
    """[blocks, bytes] of one group -> codes [blocks, 16, inputs]"""
    codes = np.zeros((len(planes), BLOCK_ROWS, inputs), np.uint8)
    start, shift = 0, 0
    for width in PLANES[bits]:
        count = inputs * width * BLOCK_ROWS // 8
        vectors = planes[:, start : start + count].reshape(len(planes), -1, BLOCK_ROWS, 1, 4)
        shifts = (np.arange(8 // width, dtype=np.uint8) * width)[:, None]
        values = vectors >> shifts & (1 << width) - 1  # [blocks, vectors, 16, quads, 4]
        values = values.transpose(0, 2, 1, 3, 4).reshape(codes.shape)
        codes |= values << shift
        start, shift = start + count, shift + width
    return codes


def _group_values(values: Array) -> Bytes:
    """[blocks, 16, groups] -> [blocks, groups, bytes]"""
    moved = np.ascontiguousarray(values.transpose(0, 2, 1))
    return moved.view(np.uint8).reshape(*moved.shape[:2], -1)


def _group_zeros(zeros: Bytes, bits: int) -> Bytes:
    """[blocks, 16, groups] -> [blocks, groups, bytes]"""
    moved = zeros.transpose(0, 2, 1)
    return _nibbles(moved) if bits == 4 else moved


def _nibbles(values: Bytes) -> Bytes:
    """[..., 16] -> [..., 8]: value i and value i + 8 in a byte."""
    nibbles: Bytes = values[..., :8] | values[..., 8:] << np.uint8(4)
    return nibbles


def _read_nibbles(packed: Bytes) -> Bytes:
    """Inverse of `_nibbles`."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _as_bytes(values: Array) -> Bytes:
    """[blocks, ...] -> [blocks, bytes]"""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
