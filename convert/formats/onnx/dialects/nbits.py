"""MatMulNBits over the checkpoint's own bytes.

It wants [outputs, blocks, bytes] with the low nibble first, which is how the checkpoint stores
codes. Scales are float16 there and cast when the graph is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsconv.convert.families.base import Linear
from dsconv.convert.formats.onnx.graph import MICROSOFT, Value
from dsconv.quant.integer import GROUP_SIZES
from dsconv.quant.schemes import Scheme

from .dialect import Dialect

BLOCK_SIZES = (256, 128, 64, 32, 16)  # what MatMulNBits takes; 512 fails, see its source


def matmul_nbits(
    dialect: Dialect,
    x: Value,
    group: Sequence[Linear],
    scheme: Scheme,
    bias: Value | None,
    element: str = "F32",
) -> Value:
    """One product for linears that lie side by side; `element` is the dtype of x and the scales."""
    names = [f"{linear.name}.weight" for linear in group]
    outputs, inputs = sum(linear.outputs for linear in group), group[0].inputs
    block, blocks = blocks_of(scheme, inputs)
    row_bytes = block * scheme.bits // 8
    codes = packed_codes(dialect, names, (outputs, blocks, row_bytes), blocks * row_bytes)
    zeros = None if scheme.symmetric else packed_zeros(dialect, names, outputs, blocks, scheme)
    scales = block_scales(dialect, names, outputs, blocks, element)
    operands = [x, codes, scales, zeros, None, bias]
    while operands[-1] is None:
        operands.pop()
    return dialect.graph.node(
        "MatMulNBits",
        operands,
        MICROSOFT,
        name=f"{names[0]}.MatMulNBits",
        K=inputs,
        N=outputs,
        bits=scheme.bits,
        block_size=block,
        accuracy_level=dialect.options.accuracy_level,
    )


def packed_codes(
    dialect: Dialect, names: list[str], shape: tuple[int, ...], row_bytes: int
) -> Value:
    """The checkpoint's own bytes, or a padded copy where a row's length does not fit."""
    weights = dialect.weights
    stored = [f"{name}_packed" for name in names]
    if weights.stored(stored[0]).shape[1] * 4 == row_bytes:
        return weights.range(stored, shape, "U8")
    pieces = weights.repacked_rows(names, row_bytes)
    return weights.written(f"{stored[0]}:padded", "U8", shape, pieces)


def block_scales(
    dialect: Dialect, names: list[str], rows: int, blocks: int, element: str = "F32"
) -> Value:
    """[rows, blocks]; a group that spans several blocks repeats its scale."""
    scales = dialect.weights.floats([f"{name}_scale" for name in names], element)
    if dialect.weights.stored(f"{names[0]}_scale").shape[1] == blocks:
        return scales
    return dialect.graph.node("Expand", [scales, dialect.graph.integers(rows, blocks)])


def packed_zeros(
    dialect: Dialect, names: list[str], rows: int, blocks: int, scheme: Scheme
) -> Value:
    pieces = dialect.weights.packed_zero_points(names, blocks, scheme.bits)
    shape = (rows, -(-blocks * scheme.bits // 8))
    return dialect.weights.written(f"{names[0]}_packed_zeros", "U8", shape, pieces)


def blocks_of(scheme: Scheme, columns: int) -> tuple[int, int]:
    """-> (block size, blocks per row). A group that is too large becomes several blocks."""
    if scheme.group_size in (16, *GROUP_SIZES):
        return scheme.group_size, scheme.groups(columns)
    for block in BLOCK_SIZES:
        if columns % block == 0:
            return block, columns // block
    block = next((block for block in reversed(BLOCK_SIZES) if block >= columns), BLOCK_SIZES[0])
    return block, -(-columns // block)
