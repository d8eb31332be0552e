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

from .block_types import TYPES, type_name, why_unreadable

STRING, ARRAY = 8, 9
SCALARS: Mapping[int, str] = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `offset` counts from the start of the file, `kind` is a `ggml_type`.

    `nbytes` is what its type makes of its shape; of a type that is not known, the bytes up to the
    next tensor.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    path: Path
    nbytes: int

    @property
    def rows(self) -> int:
        """Pieces that can be read by themselves: blocks lie along the last dimension."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.rows

    @property
    def type_name(self) -> str:
        return type_name(self.kind)


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
        if 0 in shape:
            raise _malformed(self.path, f"tensor {name!r}: shape {list(shape)}")
        if kind not in TYPES:
            return GgufTensor(name, kind, shape, offset, self.path, 0)
        known, elements, size = TYPES[kind]
        if shape[-1] % elements:
            raise _malformed(self.path, f"tensor {name!r}: {known} of shape {list(shape)}")
        nbytes = math.prod(shape) // elements * size
        return GgufTensor(name, kind, shape, offset, self.path, nbytes)


def refuse_unreadable(tensors: Mapping[str, GgufTensor]) -> None:
    """Raises UnsupportedError: a tensor of a type that has no reader."""
    for name, tensor in tensors.items():
        if tensor.kind not in TYPES:
            raise UnsupportedError(
                f"{tensor.path}: tensor {name!r}: type {tensor.type_name} is not supported "
                f"({why_unreadable(tensor.kind)})",
                "use a file of another type, or convert the original checkpoint again with a "
                "current llama.cpp",
            )


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """-> (metadata, tensors under GGUF's names), every claim checked against the file's size.

    Types are not: see `refuse_unreadable`.

    Raises:
        InputError: not GGUF, damaged or cut short.
        UnsupportedError: another version or byte order.
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
        if version in (2 << 24, 3 << 24):
            raise UnsupportedError(
                f"{path}: big-endian, for machines of another kind",
                "use the little-endian file of the model, or gguf-convert-endian of llama.cpp",
            )
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
    order = sorted(placed.values(), key=lambda tensor: tensor.offset)
    taken = start
    for place, tensor in enumerate(order):
        end = tensor.offset + tensor.nbytes
        if tensor.kind not in TYPES:  # it may end anywhere before the next
            following = order[place + 1 : place + 2]
            end = following[0].offset if following else max(cursor.size, tensor.offset)
            placed[tensor.name] = replace(tensor, nbytes=end - tensor.offset)
        if end > cursor.size:
            raise _malformed(
                path, f"tensor {tensor.name!r} ends at byte {end}, the file has {cursor.size}"
            )
        if tensor.offset < taken:
            raise _malformed(path, f"tensor {tensor.name!r} overlaps another")
        taken = end
    return placed


def read_blocks(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
    """The stored bytes of rows [start, stop): [stop - start, row_bytes]."""
    path = tensor.path
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
