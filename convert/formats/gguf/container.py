"""The GGUF container: its metadata, where its tensors lie, the bytes of a tensor's rows.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, typed
metadata, tensor descriptions, then aligned data; little-endian, the innermost dimension first.

gguf.GGUFReader is not used: it keeps a NumPy view of every token (8 seconds and 600 MiB for the
vocabulary of Llama 3) and runs for ever on a damaged array length. Rows are read, not mapped, so
that resident memory stays bounded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, many_objects
from dsconv.convert.files.local_files import open_regular
from dsconv.convert.files.safetensors import CONTROL_CHARACTERS
from dsconv.errors import InputError, UnsupportedError

STRING, ARRAY = 8, 9
SCALARS: Mapping[int, str] = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
# number in the file -> name, elements of a block, bytes of a block (ggml.h)
TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `offset` counts from the start of the file, `kind` is a key of TYPES."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        _, elements, size = TYPES[self.kind]
        return math.prod(self.shape[1:]) // elements * size

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes


def _malformed(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path}: {problem}", "the file is damaged or its download is incomplete; fetch it again"
    )


class _Cursor:
    """Reads the header in order; every length is checked before anything is allocated."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.items = 0  # of all arrays so far

    def take(self, count: int) -> bytes:
        limit = min(self.size, limits.GGUF_HEADER_BYTES)
        if count > limit - self.position:
            raise _malformed(
                self.path, f"{count} bytes wanted at byte {self.position} of a header of {limit}"
            )
        self.position += count
        return self.file.read(count)

    def name(self, what: str) -> str:
        """A short text without control characters."""
        position = self.position
        found = self.text()
        if (size := len(found.encode())) > limits.NAME_BYTES:
            raise _malformed(
                self.path,
                f"a {what} of {size} bytes at byte {position}, limit {limits.NAME_BYTES}",
            )
        if CONTROL_CHARACTERS.search(found):
            raise _malformed(self.path, f"{what} {found!r}: a control character")
        return found

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        data = self.take(self.integer(8))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise _malformed(self.path, f"{data[:40]!r} is not UTF-8 text") from None

    def values(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise _malformed(self.path, f"metadata type {kind} at byte {self.position}")
        dtype = np.dtype(SCALARS[kind])
        items: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return items

    def value(self) -> Any:
        kind = self.integer(4)
        if kind == ARRAY:
            kind, count = self.integer(4), self.integer(8)
            self.items += count
            if self.items > limits.GGUF_ARRAY_ITEMS:
                raise _malformed(
                    self.path,
                    f"an array of {count} items: {self.items} in all, limit "
                    f"{limits.GGUF_ARRAY_ITEMS}",
                )
            return self.values(kind, count)
        return self.values(kind, 1)[0]

    def tensor(self) -> GgufTensor:
        """One description; its offset still counts from the start of the data."""
        name, rank = self.name("tensor name"), self.integer(4)
        if not 1 <= rank <= limits.GGUF_RANK:
            raise _malformed(
                self.path, f"tensor {name!r}: {rank} dimensions, limit {limits.GGUF_RANK}"
            )
        shape = tuple(self.integer(8) for _ in range(rank))[::-1]
        kind, offset = self.integer(4), self.integer(8)
        if kind not in TYPES:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r}: type {_type_name(kind)} is not supported",
                f"supported: {', '.join(known for known, _, _ in TYPES.values())}",
            )
        _, elements, _ = TYPES[kind]
        if math.prod(shape[1:]) % elements or 0 in shape:
            raise _malformed(self.path, f"tensor {name!r}: {TYPES[kind][0]} of shape {list(shape)}")
        return GgufTensor(name, kind, shape, offset)


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return next((known.name for known in GGMLQuantizationType if known == kind), str(kind))


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """-> (metadata, tensors under GGUF's names), every claim checked against the file's size.

    Raises:
        InputError: not GGUF, damaged or cut short.
        UnsupportedError: another version or byte order, a block format without a reader.
    """
    try:
        with many_objects(), open_regular(path) as plain, BufferedReader(plain) as file:
            return _parse(_Cursor(file, path))
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}", "check the path") from error


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    path = cursor.path
    if (magic := cursor.take(4)) != b"GGUF":
        raise _malformed(path, f"starts with {magic!r}, a GGUF file with b'GGUF'")
    if (version := cursor.integer(4)) not in (2, 3):
        raise UnsupportedError(
            f"{path}: GGUF version {version} is not supported",
            "supported: 2 and 3, little-endian; convert the model again with a current llama.cpp",
        )
    tensor_count, key_count = cursor.integer(8), cursor.integer(8)
    for count, what, limit in (
        (tensor_count, "tensors", limits.TENSORS),
        (key_count, "keys", limits.GGUF_KEYS),
    ):
        if count > limit:
            raise _malformed(path, f"{count} {what}, limit {limit}")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        if (key := cursor.name("key")) in metadata:
            raise _malformed(path, f"key {key!r} appears twice")
        metadata[key] = cursor.value()
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        tensor = cursor.tensor()
        if tensor.name in tensors:
            raise _malformed(path, f"tensor {tensor.name!r} appears twice")
        tensors[tensor.name] = tensor
    return metadata, _placed(cursor, metadata, tensors)


def _placed(
    cursor: _Cursor, metadata: dict[str, Any], tensors: dict[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """Offsets from the start of the file; every tensor lies in it, and no two share bytes."""
    path = cursor.path
    reader = ConfigReader(metadata, str(path))
    alignment = reader.integer("general.alignment", 32, high=limits.GGUF_ALIGNMENT)
    start = -(-cursor.position // alignment) * alignment
    placed = {name: replace(t, offset=start + t.offset) for name, t in tensors.items()}
    taken = start
    for tensor in sorted(placed.values(), key=lambda tensor: tensor.offset):
        end = tensor.offset + tensor.nbytes
        if end > cursor.size:
            raise _malformed(
                path, f"tensor {tensor.name!r} ends at byte {end}, the file has {cursor.size}"
            )
        if tensor.offset < taken:
            raise _malformed(path, f"tensor {tensor.name!r} overlaps another")
        taken = end
    return placed


def read_blocks(path: Path, tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
    """The stored bytes of rows [start, stop): [stop - start, row_bytes]."""
    buffer = bytearray((stop - start) * tensor.row_bytes)
    view = memoryview(buffer)
    try:
        with open_regular(path) as file:
            file.seek(tensor.offset + start * tensor.row_bytes)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise _malformed(path, f"tensor {tensor.name!r}: the file ends too early")
                done += count
    except OSError as error:
        raise InputError(
            f"{path}: tensor {tensor.name!r}: cannot read: {error.strerror}", "check the disk"
        ) from error
    return np.frombuffer(buffer, np.uint8).reshape(stop - start, tensor.row_bytes)
