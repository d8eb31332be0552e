"""A quantized checkpoint's tensors for another reader: new where they change, linked where not.

Every tensor stays in the file it has lain in; what replaces a matrix goes where its codes lay.
Files in which nothing changes are hard-linked, the others are written anew, rows at a time: memory
does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsconv.atomic import bytes_to_copy, link_or_copy
from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.jobs import Job, chunks_of, tensors_of
from dsconv.convert.checkpoint.manifest import hash_files, provenance_of, write_manifest
from dsconv.convert.checkpoint.matrix_layout import SHAPE, encode, has_shape_tensor, stored_tensors
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.safetensors import (
    DTYPES,
    PlannedTensor,
    SafetensorsWriter,
    TensorInfo,
    read_rows,
)
from dsconv.errors import UnsupportedError
from dsconv.progress import Advance
from dsconv.quant.recoding import can_recode, recode
from dsconv.quant.schemes import Scheme

CHUNK_BYTES = 1 << 24
FLOAT, WIDE_FLOAT = "F16", "F32"


@dataclass(frozen=True)
class Piece:
    """A tensor of the output. `source`: the checkpoint's tensor with the same bytes, or None."""

    planned: PlannedTensor
    job: Job
    source: TensorInfo | None

    @property
    def unchanged(self) -> bool:
        return self.source is not None and self.job.parameter.name == self.job.source


@dataclass(frozen=True)
class Placed:
    """weight_map: tensor -> file. errors: parameter -> the most its float type moves a weight."""

    weight_map: dict[str, str]
    tensor_bytes: int
    linked_bytes: int
    errors: dict[str, float]


@dataclass(frozen=True)
class RepackResult:
    """`notes`: which matrices are stored in another way than in the checkpoint, why, the cost."""

    bytes_written: int
    bytes_linked: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


class Repacking:
    """Which files the output has, and what is new in them."""

    def __init__(self, checkpoint: Checkpoint, jobs: Sequence[Job]) -> None:
        """
        Args:
            jobs: one per parameter of the output, in network order.

        Raises:
            UnsupportedError: the checkpoint is no folder of safetensors.
        """
        if not isinstance(checkpoint.source, SafetensorsSource):
            raise UnsupportedError(
                f"{checkpoint.origin}: its weights are in no safetensors files",
                "use the folder of dsconv quantize",
            )
        self._checkpoint, self._source, self._jobs = checkpoint, checkpoint.source, jobs
        self.files = self._pieces_by_file()
        gone = self._gone()
        self._kept = {path for path in self.files if self._stays(path, gone)}

    def new_bytes(self, output: Path, copy: bool) -> int:
        """What `place` will write."""
        changed = [piece for path in self.files.keys() - self._kept for piece in self.files[path]]
        size = sum(piece.planned.nbytes for piece in changed)
        return size + bytes_to_copy(self._kept, output, copy)

    def place(
        self,
        folder: Path,
        names: dict[Path, str],
        copy: bool,
        advance: Advance = lambda count: None,
    ) -> Placed:
        """Put all files into `folder`, under the given names.

        Args:
            copy: never hard-link.
            advance: told the number of weights done.
        """
        weight_map: dict[str, str] = {}
        errors: dict[str, float] = {}
        size = linked = 0
        for path, pieces in self.files.items():
            target = folder / names[path]
            if path in self._kept:
                linked += 0 if link_or_copy(path, target, copy) else path.stat().st_size
                stored = {info.name: info.nbytes for info in self._infos(path)}
            else:
                errors |= self._write(target, pieces)
                stored = {piece.planned.name: piece.planned.nbytes for piece in pieces}
            weight_map |= dict.fromkeys(stored, target.name)
            size += sum(stored.values())
            advance(sum(p.job.parameter.size for p in pieces if self._counts(p)))
        return Placed(weight_map, size, linked, errors)

    def _pieces_by_file(self) -> dict[Path, list[Piece]]:
        """A file of which nothing is left is not there."""
        owners = {}
        for job in self._jobs:
            owners.update(dict.fromkeys([tensor.name for tensor in job.planned()], job))
            if job.scheme is not None:
                owners[f"{job.module}.{SHAPE}"] = job
        files: dict[Path, list[Piece]] = {}
        for tensor in tensors_of(list(self._jobs)):
            job = owners[tensor.name]
            place = self._source.infos[self._stored_now(job.source)[0]]
            same: TensorInfo | None = None
            if self._has_the_same_bytes(job):
                kind = tensor.name.rpartition(".")[2]
                same = place = self._source.infos[f"{module_of(job.source)}.{kind}"]
                tensor = PlannedTensor(tensor.name, same.dtype, same.shape)
            files.setdefault(place.path, []).append(Piece(tensor, job, same))
        return dict(sorted(files.items()))

    def _has_the_same_bytes(self, job: Job) -> bool:
        scheme = self._checkpoint.scheme(job.source)
        if scheme is None and job.scheme is None:
            return self._checkpoint.source.dtype(job.source) == job.float_dtype
        return scheme == job.scheme

    def _stored_now(self, name: str) -> list[str]:
        """The checkpoint's tensors of a parameter, codes first."""
        scheme = self._checkpoint.scheme(name)
        if scheme is None:
            return [name]
        rows, columns = self._checkpoint.parameters[name].shape
        module = module_of(name)
        names = [tensor.name for tensor in stored_tensors(module, (rows, columns), scheme)]
        return [*names, f"{module}.{SHAPE}"] if has_shape_tensor(scheme) else names

    def _infos(self, path: Path) -> list[TensorInfo]:
        """The tensors of one of the checkpoint's files."""
        return [info for info in self._source.infos.values() if info.path == path]

    def _gone(self) -> set[str]:
        """The checkpoint's tensors that the output does not have."""
        changed = [
            job
            for job in self._jobs
            if job.parameter.name != job.source or not self._has_the_same_bytes(job)
        ]
        return {name for job in changed for name in self._stored_now(job.source)}

    def _stays(self, path: Path, gone: set[str]) -> bool:
        """Whether a file can be kept: nothing new is in it, nothing old goes."""
        names = {info.name for info in self._infos(path)}
        return all(piece.unchanged for piece in self.files[path]) and not gone & names

    def _counts(self, piece: Piece) -> bool:
        """One piece per parameter of the checkpoint, for the progress."""
        job = piece.job
        first = job.planned()[0].name
        return job.parameter.name in self._checkpoint.parameters and piece.planned.name == first

    def _write(self, path: Path, pieces: list[Piece]) -> dict[str, float]:
        """-> parameter -> the most by which its float type moves a weight."""
        with SafetensorsWriter(path, [piece.planned for piece in pieces]) as writer:
            for piece in pieces:
                if piece.source is not None:
                    for start, stop in _row_ranges(piece.source):
                        writer.write(piece.planned.name, read_rows(piece.source, start, stop))
            changed = {p.job.parameter.name: p.job for p in pieces if p.source is None}
            floats = [job for job in changed.values() if job.scheme is None]
            for job in changed.values():
                if job.scheme is not None:
                    self._write_codes(job, job.scheme, writer)
            return {job.parameter.name: self._write_float(job, writer) for job in floats}

    def _write_codes(self, job: Job, scheme: Scheme, writer: SafetensorsWriter) -> None:
        for start, stop in chunks_of(job.parameter):
            quantized = self._checkpoint.quantized_rows(job.source, start, stop)
            if not can_recode(quantized.scheme, scheme, quantized.codes.shape[1]):
                raise RuntimeError(f"{job.module}: only integer schemes have other codes")
            for kind, array in encode(recode(quantized, scheme)).items():
                writer.write(f"{job.module}.{kind}", array)
        writer.write(f"{job.module}.{SHAPE}", np.array(job.parameter.shape, np.int64))

    def _write_float(self, job: Job, writer: SafetensorsWriter) -> float:
        """-> the most by which a weight moves."""
        error = 0.0
        for start, stop in chunks_of(job.parameter):
            values = self._checkpoint.rows(job.source, start, stop)
            stored = values.astype(DTYPES[job.float_dtype])
            error = max(error, float(np.abs(stored.astype(np.float32) - values).max(initial=0.0)))
            writer.write(job.parameter.name, stored)
        return error


def finish_folder(
    checkpoint: Checkpoint,
    folder: Path,
    kind: str,
    jobs: Sequence[Job],
    notes: tuple[str, ...],
    linked_bytes: int,
) -> RepackResult:
    """Write the manifest of a folder that is complete but for it."""
    hashes = FileHashes()
    source = provenance_of(checkpoint, hashes)
    facts = {"parameters": sum(job.parameter.size for job in jobs), "notes": list(notes)}
    write_manifest(folder, kind, source, {}, facts, hash_files(folder, hashes))
    names = sorted(path.name for path in folder.iterdir())
    total = sum((folder / name).stat().st_size for name in names)
    return RepackResult(total - linked_bytes, linked_bytes, tuple(names), notes)


def float_dtype(checkpoint: Checkpoint, name: str) -> str:
    """float16, which holds scale * code exactly for 4 bits by search, unless it may overflow."""
    scheme = checkpoint.scheme(name)
    if scheme is None or not scheme.is_plain:
        return checkpoint.float_dtype(name)
    scales = checkpoint.source.rows(f"{module_of(name)}.weight_scale").astype(np.float32)
    largest = float(np.abs(scales).max(initial=0.0)) * scheme.max_code
    return FLOAT if largest <= float(np.finfo(np.float16).max) else WIDE_FLOAT


def _row_ranges(info: TensorInfo) -> Iterator[tuple[int, int]]:
    rows = info.shape[0]
    step = max(1, CHUNK_BYTES * rows // max(1, info.nbytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
