"""Codes to bytes and back, in the one order that compressed-tensors and ONNX Runtime share.

Row by row, code i occupies bits [i*bits, (i+1)*bits) of the row, least significant first; a row is
padded to a whole number of 32-bit words. For 4 bits this is "low nibble first".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed_row_bytes(columns: int, bits: int) -> int:
    """Bytes of a packed row: whole int32 words."""
    return -(-columns * bits // 32) * 4


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[rows, n] values below 2^bits -> [rows, ceil(n * bits / 8)] bytes, for any width up to 8."""
    if bits == 4 and values.shape[1] % 2 == 0:
        nibbles: NDArray[np.uint8] = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
        return nibbles
    shifts = np.arange(bits, dtype=np.uint8)
    planes = (values[..., None] >> shifts) & np.uint8(1)
    return np.packbits(planes.reshape(len(values), -1), axis=1, bitorder="little")


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of `pack_bits` for rows of `count` values."""
    if bits == 4 and count % 2 == 0:
        return unpack_rows(packed, 4, count)
    planes = np.unpackbits(packed, axis=1, count=count * bits, bitorder="little")
    weights = np.uint8(1) << np.arange(bits, dtype=np.uint8)
    values: NDArray[np.uint8] = (planes.reshape(len(packed), count, bits) * weights).sum(
        -1, dtype=np.uint8
    )
    return values


def pack_rows(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[rows, columns] codes -> [rows, packed_row_bytes] bytes. Padding codes are 0."""
    columns = codes.shape[1]
    width = packed_row_bytes(columns, bits)
    padding = width * 8 // bits - columns
    if padding:
        codes = np.pad(codes, ((0, 0), (0, padding)))
    if bits == 8:
        return np.ascontiguousarray(codes)
    packed: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return packed


def unpack_rows(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Inverse of `pack_rows`."""
    if bits == 8:
        return packed[:, :columns]
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes[:, :columns]


def pack_zero_points(zeros: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """[rows, groups] -> int32 [ceil(rows * bits / 32), groups], packed down the rows.

    The order of compressed-tensors' `pack-quantized`, which vLLM reads.
    """
    packed = pack_rows(np.ascontiguousarray(zeros.T), bits).view(np.int32)
    return np.ascontiguousarray(packed.T)


def unpack_zero_points(packed: NDArray[np.int32], bits: int, rows: int) -> NDArray[np.uint8]:
    """Inverse of `pack_zero_points`."""
    columns = np.ascontiguousarray(packed.T).view(np.uint8)
    return np.ascontiguousarray(unpack_rows(columns, bits, rows).T)
