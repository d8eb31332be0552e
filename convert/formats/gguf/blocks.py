"""Codes and scales as llama.cpp's blocks. Pure functions; no weight is rounded a second time.

A block holds 32 weights (256 of the K types) behind its float16 scale, the bytes side by side; the
layouts are those of `ggml-common.h`. Where a nibble holds a code, the byte's low half comes from
the first half of the block (of every 64 weights of the K types), its high half from the second.

Not everything has a block of its own: `block_type` chooses the one that loses nothing and says why
it is not the one that the bits suggest; float16 is the last resort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UnsupportedError
from dsconv.quant.int8_rows import Int8Rows, Int8RowsMatrix
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import Floats, QuantizedMatrix, Scheme

Bytes = NDArray[np.uint8]

BLOCK, SUPER_BLOCK = 32, 256  # weights
GROUPS = SUPER_BLOCK // BLOCK
FOUR, SIX, LOW = np.uint8(4), np.uint8(6), np.uint8(15)  # shifts and mask that stay in a byte


@dataclass(frozen=True)
class BlockType:
    """`name` is one of gguf_file.TYPES; `reason`: why not the type that the bits suggest."""

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Packed:
    """`blocks`: [rows, bytes]; `error`: a bound of |stored - dequantized|, 0 where it is exact."""

    blocks: Bytes
    error: float


def block_type(scheme: Scheme, columns: int) -> BlockType:
    """The blocks for rows of `columns` weights."""
    if columns % BLOCK:
        return BlockType("F16", f"their rows are no multiple of {BLOCK}")
    if scheme.group_length(columns) % BLOCK:
        return BlockType("F16", f"GGUF has no blocks of {scheme.group_size} weights")
    if scheme.has_minima:
        return _scale_min_type(scheme.bits, columns)
    if scheme.bits == 4:
        return BlockType("Q4_0" if scheme.symmetric else "Q4_1")
    if scheme.symmetric:
        return BlockType("Q8_0")
    return BlockType("F16", "GGUF has no blocks of 8 bits with zero points")


def _scale_min_type(bits: int, columns: int) -> BlockType:
    if bits == 6:
        return BlockType("F16", "GGUF has no blocks of 6 bits with minima")
    reasons = ["GGUF has no blocks of 3 bits with minima"] if bits == 3 else []
    if columns % SUPER_BLOCK == 0:
        return BlockType("Q5_K" if bits == 5 else "Q4_K", *reasons)
    reasons.append(f"their rows are no multiple of {SUPER_BLOCK}")
    return BlockType("Q5_1" if bits == 5 else "Q4_1", "; ".join(reasons))


def pack(quantized: QuantizedMatrix) -> Packed:
    """The blocks of `block_type`.

    Raises:
        UnsupportedError: a number does not fit float16.
    """
    columns = quantized.codes.shape[1]
    kind = block_type(quantized.scheme, columns).name
    if kind == "F16":
        return _float16(quantized.dequantize())
    return PACKERS[type(quantized.scheme)](quantized, kind)


def _pack_scale_min(quantized: ScaleMinMatrix, kind: str) -> Packed:
    if kind in ("Q4_K", "Q5_K"):
        return Packed(_super_blocks(quantized), 0.0)
    grid = quantized.grid
    return _with_minima(quantized.codes, grid.scales, -grid.minima, quantized.scheme.bits == 5)


def _pack_int8_rows(quantized: Int8RowsMatrix, kind: str) -> Packed:
    scales = np.repeat(quantized.scales, quantized.codes.shape[1] // BLOCK, axis=1)
    return _eight_bits(quantized.codes.view(np.uint8), scales)


def _pack_integer(quantized: IntegerMatrix, kind: str) -> Packed:
    scales = _per_block(quantized.scales, quantized)
    if kind == "Q8_0":
        return _eight_bits(quantized.codes ^ np.uint8(128), scales)  # code - 128
    if quantized.zeros is not None:
        offsets = -scales * _per_block(quantized.zeros, quantized)
        return _with_minima(quantized.codes, scales, offsets, five_bits=False)
    return Packed(_join(_bytes(scales), _nibbles(_blocks(quantized.codes))), 0.0)


# A matrix and the name of its blocks -> the blocks.
PACKERS: dict[type[Scheme], Callable[[Any, str], Packed]] = {
    IntegerScheme: _pack_integer,
    ScaleMin: _pack_scale_min,
    Int8Rows: _pack_int8_rows,
}


def _float16(values: Floats) -> Packed:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return Packed(half.view(np.uint8), _distance(half, values))


def _eight_bits(codes: Bytes, scales: Floats) -> Packed:
    """Q8_0: w = scale * code; codes in two's complement, scales [rows, blocks]."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    return Packed(_join(_bytes(half), _blocks(codes)), _distance(half, scales) * 128)


def _with_minima(codes: Bytes, scales: Floats, offsets: Floats, five_bits: bool) -> Packed:
    """Q4_1 and Q5_1: w = scale * code + offset; scales, offsets [rows, blocks]."""
    blocks = _blocks(codes)
    with np.errstate(over="ignore"):
        half, half_offset = scales.astype(np.float16), offsets.astype(np.float16)
    largest_code = 31 if five_bits else 15
    error = _distance(half, scales) * largest_code + _distance(half_offset, offsets)
    # bit i of the four bytes is the fifth bit of code i
    high = [np.packbits(blocks >> FOUR, axis=-1, bitorder="little")] if five_bits else []
    return Packed(_join(_bytes(half), _bytes(half_offset), *high, _nibbles(blocks)), error)


def _super_blocks(quantized: ScaleMinMatrix) -> Bytes:
    """Q4_K and Q5_K: w = unit * step * code - minimum unit * minimum step."""
    rows = len(quantized.codes)
    codes = quantized.codes.reshape(rows, -1, GROUPS, BLOCK)
    steps = quantized.scale_steps.reshape(rows, -1, GROUPS)
    minima = quantized.minimum_steps.reshape(rows, -1, GROUPS)
    parts = [
        _bytes(quantized.super_scales),
        _bytes(quantized.super_minima),
        _six_bit_steps(steps, minima),
    ]
    if quantized.scheme.bits == 5:  # bit g of byte i is the fifth bit of code i of group g
        parts.append(np.packbits(codes >> FOUR, axis=-2, bitorder="little")[..., 0, :])
    pairs = codes.reshape(rows, -1, GROUPS // 2, 2 * BLOCK)
    parts.append(_nibbles(pairs).reshape(*pairs.shape[:2], -1))
    return _join(*parts)


def _six_bit_steps(scales: Bytes, minima: Bytes) -> Bytes:
    """Steps [..., 8] of scales and of minima -> [..., 12] bytes.

    Bytes 0 to 3 and 4 to 7 hold the first four scales and minima, above them the two high bits of
    the last four; bytes 8 to 11 hold the low halves of those.
    """
    first_scales, last_scales = scales[..., :4], scales[..., 4:]
    first_minima, last_minima = minima[..., :4], minima[..., 4:]
    parts = (
        first_scales | (last_scales >> FOUR << SIX),
        first_minima | (last_minima >> FOUR << SIX),
        (last_scales & LOW) | (last_minima << FOUR),
    )
    return np.concatenate(parts, axis=-1)


def _per_block(per_group: NDArray[Any], quantized: IntegerMatrix) -> Floats:
    """[rows, groups] -> float32 [rows, blocks]: a group of many blocks gives each its own copy."""
    copies = quantized.scheme.group_length(quantized.codes.shape[1]) // BLOCK
    return np.repeat(per_group.astype(np.float32), copies, axis=1)


def _blocks(codes: Bytes) -> Bytes:
    """[rows, columns] -> [rows, blocks, 32]."""
    return codes.reshape(len(codes), -1, BLOCK)


def _nibbles(blocks: Bytes) -> Bytes:
    """[..., n] -> [..., n / 2]: the low bits of code i below, those of code n / 2 + i above."""
    half = blocks.shape[-1] // 2
    return (blocks[..., :half] & LOW) | (blocks[..., half:] << FOUR)


def _bytes(halves: NDArray[Any]) -> Bytes:
    """[rows, blocks] -> float16, little-endian [rows, blocks, 2]."""
    return np.ascontiguousarray(halves, "<f2")[..., None].view(np.uint8)


def _join(*parts: Bytes) -> Bytes:
    """Parts [rows, blocks, n] side by side -> [rows, bytes]."""
    return np.concatenate(parts, axis=-1).reshape(len(parts[0]), -1)


def _distance(half: NDArray[np.float16], exact: Floats) -> float:
    """max |half - exact|.

    Raises:
        UnsupportedError: a value lies beyond float16.
    """
    distance = float(np.abs(half.astype(np.float32) - exact).max(initial=0.0))
    if not np.isfinite(distance):
        raise UnsupportedError(
            f"a value of {float(np.abs(exact).max()):g} does not fit float16",
            "quantize with --symmetric, or with the other choice of --bits",
        )
    return distance
