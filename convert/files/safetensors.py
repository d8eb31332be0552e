"""The safetensors container: read rows of a tensor without mapping the file, write one in a stream.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length N,
N bytes of JSON {name: {dtype, shape, data_offsets}, "__metadata__": {...}}, then the data, dense.

Reading uses pread instead of mmap so that resident memory stays bounded for files of any size.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError

from . import limits
from .impostors import HEAD_BYTES, impostor
from .json_file import many_objects, parse_json
from .local_files import open_regular

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
ITEM_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
OFFSETS_KEY = b'"data_offsets"'  # once per tensor
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize


def _malformed(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path}: {problem}", "the file is damaged or its download is incomplete; fetch it again"
    )


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """-> (header, offset of the data, size of the data)."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD_BYTES)
            # Byte 8 begins the JSON: a length may look like the beginning of any other format.
            found = impostor(head, size) if head[8:9] != b"{" else None
            if found is not None:
                raise InputError(f"{path}: {found.what}", found.hint)
            if len(head) < 8:
                raise _malformed(path, f"{size} bytes are too few for a safetensors file")
            length = int.from_bytes(head[:8], "little")
            if length > min(limits.HEADER_BYTES, size - 8):
                raise _malformed(
                    path,
                    f"header of {length} bytes in a file of {size} (limit {limits.HEADER_BYTES})",
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read: {error.strerror}", "check that every shard has been downloaded"
        ) from error
    if (count := text.count(OFFSETS_KEY)) > limits.TENSORS:  # before a second goes into parsing
        raise _malformed(path, f"{count} tensors, limit {limits.TENSORS}")
    header = parse_json(text, f"{path}: header")
    if not isinstance(header, dict):
        raise _malformed(path, "the header is not an object")
    count = len(header) - ("__metadata__" in header)
    if count > limits.TENSORS:
        raise _malformed(path, f"{count} tensors, limit {limits.TENSORS}")
    return header, 8 + length, size - 8 - length


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63  # true is no number


def _refuse_odd_name(path: Path, name: str) -> None:
    if (size := len(name.encode())) > limits.NAME_BYTES:
        raise _malformed(
            path, f"tensor {name[:40]!r}: a name of {size} bytes, limit {limits.NAME_BYTES}"
        )
    if CONTROL_CHARACTERS.search(name):
        raise _malformed(path, f"tensor {name[:40]!r}: a control character in its name")


def _tensor_info(path: Path, name: str, entry: object, base: int) -> tuple[TensorInfo, int]:
    """-> (the tensor, the end of its data relative to the data's start)."""
    if not isinstance(entry, dict):
        raise _malformed(path, f"tensor {name!r}: its entry is not an object")
    if len(name) > limits.NAME_BYTES or not (name.isascii() and name.isprintable()):
        _refuse_odd_name(path, name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(
            f"{path}: tensor {name!r}: dtype {dtype!r} is not supported",
            f"supported: {', '.join(DTYPES)}",
        )
    if not isinstance(shape, list) or not all(map(_natural, shape)):
        raise _malformed(path, f"tensor {name!r}: shape {shape!r}")
    if len(shape) > limits.RANK:
        raise _malformed(path, f"tensor {name!r}: shape of rank {len(shape)}, limit {limits.RANK}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise _malformed(path, f"tensor {name!r}: data_offsets {offsets!r}")
    info = TensorInfo(name, dtype, tuple(shape), path, base + offsets[0])
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_SIZES[dtype]:
        raise _malformed(
            path,
            f"tensor {name!r}: {dtype} {shape} needs {info.nbytes} bytes, "
            f"the header gives {offsets[1] - offsets[0]}",
        )
    return info, offsets[1]


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """List the tensors of a file, every claim of its header checked against the file's size.

    Raises:
        InputError: the header lies, overlaps, leaves holes, or the file is cut short.
    """
    with many_objects():
        header, base, size = _read_header(path)
        header.pop("__metadata__", None)
        parsed = [_tensor_info(path, name, header.pop(name), base) for name in [*header]]
    expected = 0
    ranges = sorted((info.offset, end, index) for index, (info, end) in enumerate(parsed))
    for _, end, index in ranges:
        info = parsed[index][0]
        if end > size:
            raise _malformed(
                path, f"tensor {info.name!r} ends at byte {end} of the data, which has {size}"
            )
        if info.offset - base != expected:
            raise _malformed(path, f"tensor {info.name!r}: data with a hole or an overlap")
        expected = end
    if expected != size:
        raise _malformed(path, f"{size - expected} bytes after the last tensor")
    return {info.name: info for info, _ in parsed}


def read_metadata(path: Path) -> dict[str, str]:
    """The free-text `__metadata__` of a file (empty when absent)."""
    metadata = _read_header(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _malformed(path, "__metadata__ is not an object")
    return {str(key): str(value) for key, value in metadata.items()}


def read_rows(info: TensorInfo, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """Read rows [start, stop) along the first axis, in the tensor's own dtype."""
    if not info.shape:
        start, stop, row_elements = 0, 1, 1
    else:
        stop = info.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= info.shape[0]:  # what lies behind it is another tensor
            raise IndexError(f"{info.name}: rows {start} to {stop} of {info.shape[0]}")
        row_elements = math.prod(info.shape[1:])
    row_bytes = row_elements * info.numpy_dtype.itemsize
    buffer = bytearray((stop - start) * row_bytes)
    _read_pieces(info, [(start * row_bytes, memoryview(buffer))])
    array = np.frombuffer(buffer, info.numpy_dtype)
    return array.reshape((stop - start, *info.shape[1:]) if info.shape else ())


def read_columns(info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
    """Columns [start, stop) of a tensor [rows, columns], in its own dtype; no others are read."""
    rows, columns = info.shape
    itemsize = info.numpy_dtype.itemsize
    width = (stop - start) * itemsize
    buffer = bytearray(rows * width)
    view = memoryview(buffer)
    places = (((row * columns + start) * itemsize, row * width) for row in range(rows))
    _read_pieces(info, [(offset, view[place : place + width]) for offset, place in places])
    return np.frombuffer(buffer, info.numpy_dtype).reshape(rows, stop - start)


def _read_pieces(info: TensorInfo, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Fill each piece with the bytes from its offset in the tensor on."""
    try:
        with open_regular(info.path) as file:
            for offset, view in pieces:
                file.seek(info.offset + offset)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise _malformed(
                            info.path, f"tensor {info.name!r}: the file ends too early"
                        )
                    done += count
    except OSError as error:
        raise InputError(
            f"{info.path}: tensor {info.name!r}: cannot read: {error.strerror}", "check the disk"
        ) from error


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: name, dtype (safetensors' word for it), shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def encode_header(planned: Iterable[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """Header bytes with their length prefix, padded with spaces to 64-byte aligned data."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for tensor in planned:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Write a file whose tensors were all announced; their bytes may come in any order.

    Usage: `with SafetensorsWriter(path, planned) as writer: writer.write(name, array)` where
    consecutive `write` calls for one name append rows.
    """

    def __init__(
        self,
        path: Path,
        planned: list[PlannedTensor],
        metadata: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        self._path = path
        self._resume = resume
        self._header = encode_header(planned, metadata or {"format": "pt"})
        self._start: dict[str, int] = {}
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        offset = len(self._header)
        for tensor in planned:
            self._start[tensor.name] = self._next[tensor.name] = offset
            offset += tensor.nbytes
            self._end[tensor.name] = offset
        self._size = offset
        self._file: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        if self._resume and self._path.exists():
            self._file = self._path.open("r+b")
        else:
            self._file = self._path.open("w+b")
            self._file.write(self._header)
        self._file.truncate(self._size)
        return self

    def skip(self, name: str) -> None:
        """The tensor was written by an earlier run."""
        self._next[name] = self._end[name]

    def rewind(self, name: str) -> None:
        """Write the tensor again from its start."""
        self._next[name] = self._start[name]

    def flush(self) -> None:
        if self._file is None:
            raise RuntimeError("the writer is not open")
        self._file.flush()

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Append `array`'s bytes to tensor `name`."""
        if self._file is None:
            raise RuntimeError("the writer is not open")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        start = self._next[name]
        if start + len(data) > self._end[name]:
            raise RuntimeError(f"tensor {name!r}: more bytes than announced")
        self._file.seek(start)
        self._file.write(data)
        self._next[name] = start + len(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        self._file.close()
        if kind is None:
            short = [name for name, offset in self._next.items() if offset != self._end[name]]
            if short:
                raise RuntimeError(f"tensor {short[0]!r}: fewer bytes than announced")
