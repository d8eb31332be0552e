"""Blocks as float32, to the bit as llama.cpp's `dequantize_row_*` of ggml-quants.c computes them.

Every function takes blocks [n, bytes of a block] and gives weights [n, elements of a block]. The
order of the multiplications is llama.cpp's, in single precision. The types of one to three bits
whose codes point into books of hundreds of vectors (IQ1, IQ2, IQ3) are left to the package gguf,
which carries the books.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_types import TYPES

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PIECE_WEIGHTS = 1 << 19  # decoded at a time, so that what lies between stays small
PLAIN: Mapping[str, str] = {
    **{"F32": "<f4", "F16": "<f2", "F64": "<f8"},
    **{"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
}
# IQ4_NL's sixteen levels, denser near zero (kvalues_iq4nl of ggml-common.h).
LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# The numbers of 4-bit floats (one bit of mantissa), doubled so that they are whole.
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, -0.0, -1, -2, -3, -4, -6, -8, -12], np.float32)
FP4[8] = 0.0  # llama.cpp's table holds integers, which have no negative zero
POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], np.uint8)


def dequantize(blocks: Bytes, kind: int) -> Floats:
    """[rows, bytes of a row] of type number `kind` -> [rows, weights of a row]."""
    name, elements, size = TYPES[kind]
    rows = len(blocks)
    if name in PLAIN:
        return np.ascontiguousarray(blocks).view(PLAIN[name]).astype(np.float32)
    if name == "BF16":
        halves = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
        return np.asarray((halves << 16).view(np.float32))
    flat = np.ascontiguousarray(blocks).reshape(-1, size)
    decode = _decoder(kind, name)
    result = np.empty((len(flat), elements), np.float32)
    step = max(1, PIECE_WEIGHTS // elements)
    for start in range(0, len(flat), step):
        result[start : start + step] = decode(flat[start : start + step])
    return result.reshape(rows, -1)


def _decoder(kind: int, name: str) -> Callable[[Bytes], NDArray[Any]]:
    if name in DECODERS:
        return DECODERS[name]
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as decode

    return lambda blocks: decode(blocks, GGMLQuantizationType(kind))


# ---------------------------------------------------------------- parts of blocks


def _half(blocks: Bytes, place: int) -> Floats:
    """The float16 at byte `place` of every block, [n, 1]."""
    found = np.ascontiguousarray(blocks[:, place : place + 2]).view("<f2")
    return np.asarray(found, np.float32)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """[n, bytes] -> [n, 2 * bytes]: of every `run` bytes first the low halves, then the high."""
    runs = packed.reshape(len(packed), -1, 1, run)
    halves = np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=2)
    return halves.reshape(len(packed), -1)


def _pairs(packed: Bytes, run: int) -> Bytes:
    """[n, bytes] -> [n, 4 * bytes] of two bits: of every `run` bytes the lowest pairs first."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    runs = packed.reshape(len(packed), -1, 1, run) >> shifts
    return (runs & np.uint8(3)).reshape(len(packed), -1)


def _bits(packed: Bytes) -> Bytes:
    """[n, bytes] -> [n, 8 * bytes], the lowest bit of each byte first."""
    return np.unpackbits(packed, axis=-1, bitorder="little")


def _grouped(codes: NDArray[Any], groups: int) -> Floats:
    """Codes [n, weights] as float32 [n, groups, weights of a group]."""
    return codes.astype(np.float32).reshape(len(codes), groups, -1)


def _flat(weights: Floats) -> Floats:
    return weights.reshape(len(weights), -1)


# ---------------------------------------------------------------- blocks of 32, and their like


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:], 16) * _half(blocks, 0) + _half(blocks, 2)


def _five_bits(blocks: Bytes, high: int) -> Floats:
    """Codes whose fifth bits are the four bytes from `high` on, the other four behind them."""
    fifth = _bits(blocks[:, high : high + 4])
    return (_nibbles(blocks[:, high + 4 :], 16) | fifth << np.uint8(4)).astype(np.float32)


def _q5_0(blocks: Bytes) -> Floats:
    return (_five_bits(blocks, 2) - 16) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    return _five_bits(blocks, 4) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _q1_0(blocks: Bytes) -> Floats:
    """A bit a weight: its scale, or that negated."""
    scale = _half(blocks, 0)
    return np.where(_bits(blocks[:, 2:]) == 1, scale, -scale)


def _q2_0(blocks: Bytes) -> Floats:
    return (_pairs(blocks[:, 2:], 1).astype(np.float32) - 1) * _half(blocks, 0)


# ---------------------------------------------------------------- blocks of 256 with 6-bit steps


def _q2_k(blocks: Bytes) -> Floats:
    steps, codes = blocks[:, :16], _grouped(_pairs(blocks[:, 16:80], 32), 16)
    scales = _half(blocks, 80) * (steps & np.uint8(15))
    minima = _half(blocks, 82) * (steps >> np.uint8(4))
    return _flat(scales[..., None] * codes - minima[..., None])


def _q3_k(blocks: Bytes) -> Floats:
    """A clear bit of the first 32 bytes takes 4 from the code."""
    high = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    low = _pairs(blocks[:, 32:96], 32)
    codes = low.astype(np.float32) - (4 - 4 * high.reshape(len(blocks), -1).astype(np.float32))
    packed = blocks[:, 96:108]
    steps = _nibbles(packed[:, :8], 8) | _pairs(packed[:, 8:], 4) << np.uint8(4)
    scales = _half(blocks, 108) * (steps.astype(np.float32) - 32)
    return _flat(scales[..., None] * _grouped(codes, 16))


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The twelve bytes that `blocks._six_bit_steps` describes -> steps [n, 8], minima [n, 8]."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, four, low = np.uint8(63), np.uint8(4), np.uint8(15)
    last_scales = (rest & low) | (first >> np.uint8(6) << four)
    last_minima = (rest >> four) | (second >> np.uint8(6) << four)
    return (
        np.concatenate([first & six, last_scales], axis=1),
        np.concatenate([second & six, last_minima], axis=1),
    )


def _with_minima(blocks: Bytes, codes: Bytes) -> Floats:
    """Q4_K and Q5_K: eight groups of 32."""
    steps, minimum_steps = _scales_and_minima(blocks[:, 4:16])
    scales, minima = _half(blocks, 0) * steps, _half(blocks, 2) * minimum_steps
    return _flat(scales[..., None] * _grouped(codes, 8) - minima[..., None])


def _q4_k(blocks: Bytes) -> Floats:
    return _with_minima(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Bytes) -> Floats:
    """Bit g of byte i is the fifth bit of code i of group g."""
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    codes = _nibbles(blocks[:, 48:], 32) | fifth.reshape(len(blocks), -1) << np.uint8(4)
    return _with_minima(blocks, codes)


def _q6_k(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, :128], 64) | _pairs(blocks[:, 128:192], 32) << np.uint8(4)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return _flat(scales[..., None] * (_grouped(codes, 16) - 32))


def _q8_k(blocks: Bytes) -> Floats:
    """A float32 scale; the sums behind the codes serve products only."""
    scale = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    return np.asarray(blocks[:, 4:260].view(np.int8) * scale, np.float32)


# ---------------------------------------------------------------- codes for levels


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * LEVELS[_nibbles(blocks[:, 2:], 16)]


def _iq4_xs(blocks: Bytes) -> Floats:
    """Eight groups of 32; two high bits of each step in one 16-bit number, the low ones behind."""
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    steps = _nibbles(blocks[:, 4:8], 1) | (high & 3).astype(np.uint8) << np.uint8(4)
    scales = _half(blocks, 0) * (steps.astype(np.float32) - 32)
    levels = LEVELS[_nibbles(blocks[:, 8:], 16)].reshape(len(blocks), 8, 32)
    return _flat(scales[..., None] * levels)


def _mxfp4(blocks: Bytes) -> Floats:
    """The scale is half a power of two, e8m0: half because FP4 is doubled."""
    exponents = blocks[:, :1].astype(np.int32) - 128
    scales = np.ldexp(np.float32(1), exponents)  # 2^-128 is a subnormal number, and exact
    return np.asarray(scales * FP4[_nibbles(blocks[:, 1:], 16)], np.float32)


def _nvfp4(blocks: Bytes) -> Floats:
    """Four scales (e4m3 without a sign, halved as in MXFP4) for 16 weights each."""
    codes = blocks[:, :4]
    exponents = (codes >> np.uint8(3) & np.uint8(15)).astype(np.int32)
    mantissas = (codes & np.uint8(7)).astype(np.float32)
    subnormal = exponents == 0
    whole = np.where(subnormal, mantissas, mantissas + 8)
    scales = np.ldexp(whole, np.where(subnormal, 1, exponents) - 11)
    scales[(codes == 0) | (codes == 0x7F)] = 0  # no number
    levels = FP4[_nibbles(blocks[:, 4:], 8)].reshape(len(blocks), 4, 16)
    return _flat(np.asarray(scales[..., None] * levels, np.float32))


# ---------------------------------------------------------------- three levels


def _trits(packed: Bytes, run: int, digits: int) -> Bytes:
    """[n, bytes] -> [n, digits * bytes]: a byte holds a fraction of 256 in base three."""
    runs = packed.reshape(len(packed), -1, 1, run)
    shifted = runs * POWERS_OF_THREE[:digits, None]  # what overflows has been read before
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


def _tq1_0(blocks: Bytes) -> Floats:
    trits = (
        *(_trits(blocks[:, :32], 32, 5), _trits(blocks[:, 32:48], 16, 5)),
        _trits(blocks[:, 48:52], 4, 4),
    )
    return (np.concatenate(trits, axis=1).astype(np.float32) - 1) * _half(blocks, 52)


def _tq2_0(blocks: Bytes) -> Floats:
    return (_pairs(blocks[:, :64], 32).astype(np.float32) - 1) * _half(blocks, 64)


DECODERS: Mapping[str, Callable[[Bytes], Floats]] = {
    **{"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0},
    **{"Q1_0": _q1_0, "Q2_0": _q2_0, "Q8_K": _q8_k},
    **{"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k},
    **{"IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "NVFP4": _nvfp4},
    **{"TQ1_0": _tq1_0, "TQ2_0": _tq2_0},
}
