"""Open a `.dsq` file: everything it says is checked before anything is allocated or run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from dsconv.convert.files import limits
from dsconv.convert.files.hashes import HASH_PLACEHOLDER
from dsconv.convert.files.local_files import open_regular
from dsconv.convert.files.safetensors import TensorInfo, read_metadata, read_rows, read_tensor_infos
from dsconv.errors import InputError

from .format import HEADER_HASH, SIDE_FILE_PREFIX, Metadata
from .program_check import ProgramShapes, check_program

ALIGNMENT = 64


@dataclass(frozen=True)
class NativeFile:
    """A checked file: what is in it, and where."""

    path: Path
    size: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def side_files(self) -> dict[str, bytes]:
        """Name -> content of the tokenizer's files and their like."""
        small = {
            name: text.encode("utf-8", "surrogateescape")
            for name, text in self.metadata.side_files.items()
        }
        large = {
            name.removeprefix(SIDE_FILE_PREFIX): read_rows(info).tobytes()
            for name, info in self.tensors.items()
            if name.startswith(SIDE_FILE_PREFIX)
        }
        return {**small, **large}

    @property
    def weights(self) -> Iterator[TensorInfo]:
        """Matrices and vectors, without side files."""
        return (t for name, t in self.tensors.items() if not name.startswith(SIDE_FILE_PREFIX))

    def header_is_intact(self) -> bool:
        """Is the header, to its last byte of padding, the one that was written?"""
        with open_regular(self.path) as file:
            prefix = file.read(8)
            length = min(int.from_bytes(prefix, "little"), limits.HEADER_BYTES)
            header = prefix + file.read(length)
        own, blank = (  # JSON text within JSON
            f'"{HEADER_HASH}":"\\"{digest}\\""'.encode()
            for digest in (self.metadata.header_sha256, HASH_PLACEHOLDER)
        )
        if not self.metadata.header_sha256 or header.count(own) != 1:
            return False
        return sha256(header.replace(own, blank)).hexdigest() == self.metadata.header_sha256

    def damaged_tensors(self) -> list[str]:
        """Names of tensors whose bytes are not those that were written; reads the whole file."""
        return [
            name
            for name, info in self.tensors.items()
            if sha256(read_rows(info).data).hexdigest() != self.metadata.sha256.get(name)
        ]


def open_native_file(path: Path) -> NativeFile:
    """Read and check header, metadata and program.

    Raises:
        InputError: damaged, another version, or something in it does not fit together.
    """
    tensors = read_tensor_infos(path)
    metadata = Metadata.decode(read_metadata(path), str(path))
    _check_tensors(path, metadata, tensors)
    vectors = {
        name: info.shape[0]
        for name, info in tensors.items()
        if name not in metadata.matrices and not name.startswith(SIDE_FILE_PREFIX)
    }
    check_program(metadata.program, ProgramShapes(metadata.matrices, vectors), str(path))
    size = max((info.offset + info.nbytes for info in tensors.values()), default=0)
    return NativeFile(path, size, metadata, tensors)


def _check_tensors(path: Path, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
    def wrong(name: str, problem: str) -> InputError:
        return InputError(f"{path}: tensor {name!r} {problem}", "export the model again")

    for name, layout in metadata.matrices.items():
        info = tensors.get(name)
        if info is None:
            raise wrong(name, "is missing")
        expected = (layout.blocks, layout.block_bytes)
        if info.dtype != "U8" or info.shape != expected:
            raise wrong(
                name,
                f"is {info.dtype} {list(info.shape)}, {layout.kind} [{layout.rows}, {layout.cols}] "
                f"takes U8 {list(expected)}",
            )
        if info.offset % ALIGNMENT:
            raise wrong(name, f"starts at byte {info.offset}, not a multiple of {ALIGNMENT}")
    for name, info in tensors.items():
        if name in metadata.matrices:
            continue
        wanted = "U8" if name.startswith(SIDE_FILE_PREFIX) else "F32"
        if info.dtype != wanted or len(info.shape) != 1:
            raise wrong(name, f"is {info.dtype} {list(info.shape)}, not a vector of {wanted}")
        if info.offset % info.numpy_dtype.itemsize:
            raise wrong(name, f"starts at byte {info.offset}, not a multiple of its items")
