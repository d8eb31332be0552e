"""Weights of an exported graph: byte ranges of the checkpoint's own files wherever they fit.

What a dialect needs in another order (transposed codes, zero points) is streamed into one more
file beside the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.files.safetensors import TensorInfo
from dsconv.errors import UnsupportedError
from dsconv.quant.packing import pack_rows, unpack_rows
from dsconv.quant.schemes import WHOLE_ROW, Scheme

from .graph import GraphBuilder, Value
from .graph_source import GraphSource
from .names import DATA_FILE

CHUNK_CODES = 1 << 24  # codes held unpacked at a time while reordering
CHUNK_HALVES = 1 << 26  # float16 weights held at a time: each pass over the rows dequantizes them
HALF_MAX = 65504.0


class DataFile:
    """An append-only file of tensors that only the graph needs; made on demand."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DATA_FILE
        self._file: BinaryIO | None = None
        self._ranges: dict[str, tuple[int, int]] = {}
        self.size = 0

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def names(self) -> frozenset[str]:
        """Of all that was written."""
        return frozenset(self._ranges)

    def append(self, name: str, pieces: Iterator[NDArray[Any]]) -> tuple[int, int]:
        """Write the pieces one after the other -> (offset, bytes).

        A name that was written before, by another graph of the artifact, keeps its bytes.
        """
        if name not in self._ranges:
            self._ranges[name] = self._write(pieces)
        return self._ranges[name]

    def _write(self, pieces: Iterator[NDArray[Any]]) -> tuple[int, int]:
        if self._file is None:
            self._file = self._path.open("wb")
        padding = -self.size % 64
        self._file.write(b"\0" * padding)
        start = self.size + padding
        self.size = start
        for piece in pieces:
            self.size += self._file.write(
                np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            )
        return start, self.size - start


class GraphWeights:
    """Turns parameters of a checkpoint into initializers of a graph."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphBuilder, data: DataFile) -> None:
        if not isinstance(checkpoint.source, SafetensorsSource | GraphSource):
            raise TypeError("a graph refers to safetensors files only")
        self.checkpoint = checkpoint
        self._infos = checkpoint.source.infos
        self._graph = graph
        self._data = data

    def scheme(self, name: str) -> Scheme | None:
        """How the parameter is quantized; None for float.

        Raises:
            UnsupportedError: with scale and minimum, which no ONNX operator computes, and with int8
                activations, for which there is no dialect.
        """
        scheme = self.checkpoint.scheme(name)
        if scheme is None:
            return None
        if scheme.has_minima:
            raise UnsupportedError(
                f"{name}: no ONNX operator reads scale and minimum",
                "quantize with --scheme integer for ONNX, or use export --format gguf",
            )
        if scheme.rounds_inputs:
            raise UnsupportedError(
                f"{name}: int8 activations are not exported to ONNX",
                "quantize with --bits 8 alone for ONNX: --accuracy-level 4 then rounds activations",
            )
        return scheme

    def stored(self, name: str) -> TensorInfo:
        return self._infos[name]

    def is_in_graph(self, name: str) -> bool:
        """Has a graph in the checkpoint's folder the only copy of this tensor?"""
        source = self.checkpoint.source
        return isinstance(source, GraphSource) and name not in self._infos

    def adjacent(self, names: list[str]) -> bool:
        """Do the tensors follow each other in one file, with the same dtype and width?"""
        infos = [self._infos[name] for name in names]
        first = infos[0]
        end = first.offset
        for info in infos:
            if info.path != first.path or info.offset != end or info.dtype != first.dtype:
                return False
            if info.shape[1:] != first.shape[1:]:
                return False
            end += info.nbytes
        return True

    def range(self, names: list[str], shape: tuple[int, ...], dtype: str | None = None) -> Value:
        """The bytes of adjacent tensors seen as one array of `shape` (and another element type)."""
        first = self._infos[names[0]]
        nbytes = sum(self._infos[name].nbytes for name in names)
        dtype = dtype or first.dtype
        label = names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}"
        if shape != first.shape or dtype != first.dtype:  # one range may be seen in several ways
            label += f":{dtype}:{'x'.join(map(str, shape))}"
        return self._graph.reference(label, first.path.name, first.offset, nbytes, dtype, shape)

    def floats(self, names: list[str], element: str = "F32") -> Value:
        """Adjacent float tensors as one array of `element`, cast from their stored dtype."""
        first = self._infos[names[0]]
        rows = sum(self._infos[name].shape[0] for name in names)
        value = self.range(names, (rows, *first.shape[1:]))
        return self._graph.cast_between(value, first.dtype, element)

    def copied_vector(self, name: str) -> Value:
        """A vector written out in float32: no node for providers that fold no constants."""
        values = self.checkpoint.rows(name)
        return self.written(f"{name}:F32", "F32", values.shape, iter([values]))

    def half_rows(self, name: str) -> Value:
        """A matrix as float16 [rows, columns], dequantized where it is quantized."""
        pieces = (_half(self.checkpoint.rows(name, *rows), name) for rows in self.chunks(name))
        return self.written(f"{name}:F16", "F16", self.checkpoint.parameters[name].shape, pieces)

    def half_transposed(self, name: str) -> Value:
        """A matrix as float16 [columns, rows], dequantized where it is quantized.

        Like `transposed_codes` in a few passes over the rows, whatever the matrix's size.
        """
        rows, columns = self.checkpoint.parameters[name].shape

        def pieces() -> Iterator[NDArray[np.float16]]:
            step = max(1, CHUNK_HALVES // rows)
            for left in range(0, columns, step):
                right = min(columns, left + step)
                piece = np.empty((right - left, rows), np.float16)
                for start, stop in self.chunks(name):
                    values = self.checkpoint.rows(name, start, stop)[:, left:right]
                    piece[:, start:stop] = _half(values, name).T
                yield piece

        return self.written(f"{name}:F16:transposed", "F16", (columns, rows), pieces())

    def written(
        self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterator[NDArray[Any]]
    ) -> Value:
        """Stream `pieces` into the data file -> initializer."""
        offset, nbytes = self._data.append(name, pieces)
        return self._graph.reference(name, DATA_FILE, offset, nbytes, dtype, shape)

    def chunks(self, name: str) -> Iterator[tuple[int, int]]:
        """Row ranges of at most CHUNK_CODES weights, multiples of 8 rows."""
        rows, columns = self.checkpoint.parameters[name].shape
        step = max(8, CHUNK_CODES // columns // 8 * 8)
        for start in range(0, rows, step):
            yield start, min(rows, start + step)

    def repacked_rows(self, names: list[str], row_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Packed rows stretched with zeros (or cut) to `row_bytes`."""
        for name in names:
            for start, stop in self.chunks(name):
                packed = self._packed(name, start, stop)[:, :row_bytes]
                yield np.pad(packed, ((0, 0), (0, row_bytes - packed.shape[1])))

    def packed_zero_points(
        self, names: list[str], blocks: int, bits: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Zero points packed along each row, whole bytes, one group's value for all its blocks."""
        row_bytes = -(-blocks * bits // 8)
        for name in names:
            for start, stop in self.chunks(name):
                zeros = self.checkpoint.zero_points(name, start, stop)
                zeros = np.repeat(zeros, blocks // zeros.shape[1], axis=1)
                yield pack_rows(zeros, bits)[:, :row_bytes]

    def transposed_codes(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Codes [inputs, outputs] in pieces of an even number of inputs.

        The packed rows are read once per piece: a few passes over the file instead of a matrix in
        memory.
        """
        rows, columns = self.checkpoint.parameters[name].shape
        scheme = self._scheme(name)
        step = max(8, CHUNK_CODES // rows // 8 * 8)
        for left in range(0, columns, step):
            right = min(columns, left + step)
            piece = np.empty((right - left, rows), np.uint8)
            first, last = left * scheme.bits // 8, -(-right * scheme.bits // 8)
            for start, stop in self.chunks(name):
                packed = self._packed(name, start, stop)[:, first:last]
                piece[:, start:stop] = unpack_rows(packed, scheme.bits, right - left).T
            yield piece

    def transposed_scales(self, name: str) -> NDArray[np.float32]:
        """-> [groups, outputs], or [outputs] when a row is one group."""
        scales = self._all_rows(f"{module_of(name)}.weight_scale").astype(np.float32)
        whole_row = self._scheme(name).group_size == WHOLE_ROW
        return scales[:, 0] if whole_row else np.ascontiguousarray(scales.T)

    def transposed_zeros(self, name: str) -> NDArray[np.uint8]:
        """-> [groups, outputs], or [outputs] when a row is one group."""
        rows = self.checkpoint.parameters[name].shape[0]
        zeros = self.checkpoint.zero_points(name, 0, rows)
        whole_row = self._scheme(name).group_size == WHOLE_ROW
        return zeros[:, 0] if whole_row else np.ascontiguousarray(zeros.T)

    def _scheme(self, name: str) -> Scheme:
        scheme = self.scheme(name)
        if scheme is None:
            raise RuntimeError(f"{name} is not quantized")
        return scheme

    def _packed(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        rows = self.checkpoint.source.rows(f"{module_of(name)}.weight_packed", start, stop)
        return np.ascontiguousarray(rows).view(np.uint8)

    def _all_rows(self, stored_name: str) -> NDArray[Any]:
        return self.checkpoint.source.rows(stored_name)


def _half(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    if not np.abs(values).max(initial=0) <= HALF_MAX:
        raise UnsupportedError(
            f"{name}: a weight does not fit float16 (limit {HALF_MAX:g})",
            "export for a target that computes in float32: cpu, openvino, webgpu",
        )
    return values.astype(np.float16)
