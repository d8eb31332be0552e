"""Export a checkpoint as one `.dsq` file for the native engine (docs/native.md).

Codes and scales are carried over as they are; only their order changes. A matrix is read, packed
and written in slices of rows, so memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsconv import __version__
from dsconv.atomic import output_file, require_space
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.manifest import Provenance, announced_provenance, provenance_of
from dsconv.convert.families.inventory import Role
from dsconv.convert.files.hashes import HASH_PLACEHOLDER
from dsconv.convert.files.safetensors import PlannedTensor, SafetensorsWriter, encode_header
from dsconv.convert.forward.workers import Workers
from dsconv.errors import UnsupportedError, UsageError
from dsconv.progress import Advance

from .format import (
    FORMAT_VERSION,
    SIDE_FILE_PREFIX,
    SMALL_SIDE_FILE_BYTES,
    SUFFIX,
    Metadata,
)
from .linear_layout import BLOCK_ROWS, LinearLayout, Packable, pack_linear
from .program import build_program

CHUNK_WEIGHTS = 1 << 21  # packed at a time by one thread


@dataclass(frozen=True)
class NativeResult:
    """`bits_per_weight` counts every byte of the matrices and vectors."""

    bytes_written: int
    bits_per_weight: float


def export_native(
    checkpoint: Checkpoint,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
    threads: int = 0,
) -> NativeResult:
    """Write `output`, whose name ends in .dsq.

    Args:
        advance: told the number of weights written.
        threads: that pack; 0 is one per core. The bytes are the same for any number.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UsageError: another suffix.
        UnsupportedError: a matrix is stored in a way that the engine has no kernel for.
    """
    if output.suffix != SUFFIX:
        raise UsageError(
            f"{output}: the native format is one file", f"choose a name that ends in {SUFFIX}"
        )
    file = _NativeFile(checkpoint)
    require_space(output, file.weight_bytes)
    with output_file(output, overwrite) as path:
        file.write(path, advance, threads or os.cpu_count() or 1)
        size = path.stat().st_size
    return NativeResult(size, 8 * file.weight_bytes / checkpoint.parameter_count)


class _NativeFile:
    """All that is decided before the first byte is written: the program, tensors, their order."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._program, self._ropes = build_program(checkpoint.decoder)
        names = checkpoint.parameters
        self._matrices = {
            name: _layout(checkpoint, name)
            for name, parameter in names.items()
            if parameter.role is not Role.VECTOR
        }
        self._vectors = [name for name in names if names[name].role is Role.VECTOR]
        side_files = checkpoint.side_files
        self._large = {k: v for k, v in side_files.items() if len(v) > SMALL_SIDE_FILE_BYTES}
        # Matrices are whole cache lines: in front of all others they are aligned.
        planned = [
            PlannedTensor(name, "U8", (layout.blocks, layout.block_bytes))
            for name, layout in self._matrices.items()
        ]
        planned += [PlannedTensor(n, "F32", names[n].shape) for n in self._vectors]
        planned += [
            PlannedTensor(name, "F32", (rope.head_dim // 2,)) for name, rope in self._ropes.items()
        ]
        self.weight_bytes = sum(tensor.nbytes for tensor in planned)
        planned += [
            PlannedTensor(f"{SIDE_FILE_PREFIX}{name}", "U8", (len(content),))
            for name, content in self._large.items()
        ]
        self._planned = planned

    def write(self, path: Path, advance: Advance, threads: int) -> None:
        hashes = {tensor.name: HASH_PLACEHOLDER for tensor in self._planned}
        blank = self._metadata(hashes, announced_provenance(self._checkpoint))
        with (
            ThreadPoolExecutor(1) as hasher,
            SafetensorsWriter(path, self._planned, blank) as writer,
        ):
            inputs = hasher.submit(provenance_of, self._checkpoint)
            for tensor, pieces in self._contents(threads, advance):
                digest = hashlib.sha256()
                for piece in pieces:
                    writer.write(tensor, piece)
                    digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
                hashes[tensor] = digest.hexdigest()
        source = inputs.result()
        header = encode_header(self._planned, self._metadata(hashes, source))
        own = hashlib.sha256(header).hexdigest()
        with path.open("r+b") as file:  # the same length: hashes have all the same
            file.write(encode_header(self._planned, self._metadata(hashes, source, own)))

    def _metadata(
        self,
        hashes: Mapping[str, str],
        source: Provenance,
        header_hash: str = HASH_PLACEHOLDER,
    ) -> dict[str, str]:
        checkpoint = self._checkpoint
        small = {k: v for k, v in checkpoint.side_files.items() if k not in self._large}
        return Metadata(
            FORMAT_VERSION,
            dict(checkpoint.config),
            checkpoint.decoder.config.max_position_embeddings,
            self._program,
            self._matrices,
            {name: content.decode("utf-8", "surrogateescape") for name, content in small.items()},
            dict(hashes),
            {
                "source": source.name,
                "dsconv": __version__,
                "provenance": json.dumps(source.to_json(), sort_keys=True),
            },
            header_hash,
        ).encode()

    def _contents(
        self, threads: int, advance: Advance
    ) -> Iterator[tuple[str, Iterator[NDArray[Any]]]]:
        """Every tensor with its bytes in pieces, in the order of the file."""
        with Workers(threads) as workers:
            for name in self._matrices:
                yield name, self._packed(name, workers, advance)
        for name in self._vectors:
            values = self._checkpoint.rows(name)
            advance(values.size)
            yield name, iter([values])
        for name, rope in self._ropes.items():
            yield name, iter([rope.frequencies()])
        for name, content in self._large.items():
            yield f"{SIDE_FILE_PREFIX}{name}", iter([np.frombuffer(content, np.uint8)])

    def _packed(self, name: str, workers: Workers, advance: Advance) -> Iterator[NDArray[np.uint8]]:
        rows, columns = self._checkpoint.parameters[name].shape
        step = max(1, CHUNK_WEIGHTS // columns // BLOCK_ROWS) * BLOCK_ROWS
        for piece, count in workers.in_order(
            lambda start: (
                pack_linear(_rows(self._checkpoint, name, start, min(rows, start + step))),
                min(rows, start + step) - start,
            ),
            range(0, rows, step),
        ):
            yield piece
            advance(count * columns)


def _layout(checkpoint: Checkpoint, name: str) -> LinearLayout:
    rows, columns = checkpoint.parameters[name].shape
    scheme = checkpoint.scheme(name)
    if scheme is not None and scheme.rounds_inputs:
        raise UnsupportedError(
            f"{name}: int8 weights made for int8 inputs have no native kernel",
            "quantize again with --bits 8 and without --activations int8",
        )
    if scheme is not None:
        return LinearLayout.of_scheme(scheme, rows, columns)
    is_bfloat16 = checkpoint.source.dtype(name) == "BF16"
    return LinearLayout("bfloat16" if is_bfloat16 else "float16", rows, columns)


def _rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Packable:
    if checkpoint.scheme(name) is not None:
        return checkpoint.quantized_rows(name, start, stop)
    values = checkpoint.source.rows(name, start, stop)
    if values.dtype == ml_dtypes.bfloat16:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values.astype(np.float16))
    if not np.array_equal(np.isfinite(halves), np.isfinite(values)):
        raise UnsupportedError(
            f"{name}: float32 weights beyond the range of float16",
            "convert the checkpoint to bfloat16, or quantize it",
        )
    return halves
