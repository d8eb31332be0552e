"""Export a quantized checkpoint as a folder that transformers and vLLM load as it is.

`readable.py` decides what becomes of every matrix. Files in which nothing changes are hard-linked;
the others are written anew, rows at a time: memory does not grow with the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import link_or_copy, output_folder
from ..disk_space import bytes_to_copy, require_space
from ..errors import UnsupportedError
from ..quant.recoding import recode
from ..quant.rounding import AnyScheme
from ..quant.scheme import Quantized, Scheme
from .checkpoint import CONFIG, Checkpoint, module_of
from .compressed_tensors import build_quantization_config
from .export_notes import notes_on
from .families import read_family
from .families.inventory import Role, parameters_of
from .file_hashes import FileHashes
from .json_file import ConfigReader
from .layout import SHAPE, encode, has_shape_tensor, stored_tensors
from .manifest import write_manifest
from .materialize import place_side_files
from .provenance import provenance_of
from .quantization_plan import Job, tensors_of
from .quantized import chunks_of
from .readable import readable_schemes
from .safetensors_file import DTYPES, PlannedTensor, SafetensorsWriter, TensorInfo, read_rows
from .sources import INDEX, SafetensorsSource

CHUNK_BYTES = 1 << 24
FLOAT, WIDE_FLOAT = "F16", "F32"


@dataclass(frozen=True)
class CompressedTensorsResult:
    """`notes`: which matrices are stored in another way than in the checkpoint, why, the cost."""

    bytes_written: int
    bytes_linked: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A tensor of the output. `source`: the checkpoint's tensor with the same bytes, or None."""

    planned: PlannedTensor
    job: Job
    source: TensorInfo | None

    @property
    def unchanged(self) -> bool:
        return self.source is not None and self.job.parameter.name == self.job.source


def export_compressed_tensors(
    checkpoint: Checkpoint,
    output: Path,
    copy: bool = False,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> CompressedTensorsResult:
    """Write the folder `output`.

    Args:
        copy: never hard-link.
        advance: told the number of weights done.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: not quantized, or with scale and minimum.
    """
    config, jobs = _plan(checkpoint)
    if not isinstance(checkpoint.source, SafetensorsSource):
        raise UnsupportedError(
            f"{checkpoint.origin}: no safetensors folder", "give the folder of dsconv quantize"
        )
    files = _files(checkpoint, checkpoint.source, jobs)
    kept = {path for path, pieces in files.items() if _stays(checkpoint, path, pieces, jobs)}
    changed = [piece for path in files.keys() - kept for piece in files[path]]
    size = sum(piece.planned.nbytes for piece in changed)
    require_space(output, size + bytes_to_copy(kept, output, copy))
    errors: dict[str, float] = {}
    with output_folder(output, overwrite) as folder:
        linked = place_side_files(checkpoint, folder, copy)
        weight_map: dict[str, str] = {}
        size = 0
        for path, pieces in files.items():
            if path in kept:
                linked += 0 if link_or_copy(path, folder / path.name, copy) else path.stat().st_size
                stored = {info.name: info.nbytes for info in _infos(checkpoint, path)}
            else:
                errors |= _write(checkpoint, folder / path.name, pieces)
                stored = {piece.planned.name: piece.planned.nbytes for piece in pieces}
            weight_map |= dict.fromkeys(stored, path.name)
            size += sum(stored.values())
            advance(sum(p.job.parameter.size for p in pieces if _counts(checkpoint, p)))
        if (checkpoint.origin / INDEX).exists():
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            _write_json(folder / INDEX, index)
        _write_json(folder / CONFIG, config)
        notes = notes_on(checkpoint, jobs, errors)
        hashes = FileHashes()
        source = provenance_of(checkpoint, hashes)
        facts = {"parameters": sum(job.parameter.size for job in jobs), "notes": list(notes)}
        write_manifest(folder, "compressed-tensors", source, {}, facts, hashes=hashes)
        names = sorted(path.name for path in folder.iterdir())
        total = sum((folder / name).stat().st_size for name in names)
        return CompressedTensorsResult(total - linked, linked, tuple(names), notes)


def _plan(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Job]]:
    """-> (config.json, one job per parameter in network order)."""
    decoder = checkpoint.decoder
    table, head = decoder.table.name, decoder.head_linear.name
    schemes = readable_schemes(checkpoint)
    config = dict(checkpoint.config)
    if decoder.config.tie_word_embeddings and head in schemes:
        config["tie_word_embeddings"] = False
    jobs = []
    for parameter in parameters_of(read_family(ConfigReader(config, CONFIG))):
        source = parameter.name if parameter.name in checkpoint.parameters else f"{table}.weight"
        scheme = None if parameter.role is Role.VECTOR else schemes[module_of(parameter.name)]
        jobs.append(Job(parameter, source, scheme, _float_dtype(checkpoint, source)))
    schemes.setdefault(head, schemes[table])
    config["quantization_config"] = build_quantization_config(schemes, [table], head)
    return config, jobs


def _float_dtype(checkpoint: Checkpoint, name: str) -> str:
    """float16, which holds scale * code exactly for 4 bits by search, unless it may overflow."""
    scheme = checkpoint.scheme(name)
    if not isinstance(scheme, Scheme):
        return checkpoint.float_dtype(name)
    scales = checkpoint.source.rows(f"{module_of(name)}.weight_scale").astype(np.float32)
    largest = float(np.abs(scales).max(initial=0.0)) * scheme.max_code
    return FLOAT if largest <= float(np.finfo(np.float16).max) else WIDE_FLOAT


def _stored_now(checkpoint: Checkpoint, name: str) -> list[str]:
    """The checkpoint's tensors of a parameter, codes first."""
    scheme = checkpoint.scheme(name)
    if scheme is None:
        return [name]
    rows, columns = checkpoint.parameters[name].shape
    module = module_of(name)
    names = [tensor.name for tensor in stored_tensors(module, (rows, columns), scheme)]
    return [*names, f"{module}.{SHAPE}"] if has_shape_tensor(scheme) else names


def _files(
    checkpoint: Checkpoint, source: SafetensorsSource, jobs: list[Job]
) -> dict[Path, list[Piece]]:
    """What every file of the output holds: each tensor stays in the file it has lain in.

    What replaces a matrix goes where its codes lay. A file of which nothing is left is not there.
    """
    owners = {}
    for job in jobs:
        owners.update(dict.fromkeys([tensor.name for tensor in job.planned()], job))
        if job.scheme is not None:
            owners[f"{job.module}.{SHAPE}"] = job
    files: dict[Path, list[Piece]] = {}
    for tensor in tensors_of(jobs):
        job = owners[tensor.name]
        place = source.infos[_stored_now(checkpoint, job.source)[0]]
        same: TensorInfo | None = None
        if checkpoint.scheme(job.source) == job.scheme:
            kind = tensor.name.rpartition(".")[2]
            same = place = source.infos[f"{module_of(job.source)}.{kind}"]
            tensor = PlannedTensor(tensor.name, same.dtype, same.shape)
        files.setdefault(place.path, []).append(Piece(tensor, job, same))
    return dict(sorted(files.items()))


def _infos(checkpoint: Checkpoint, path: Path) -> list[TensorInfo]:
    """The tensors of one of the checkpoint's files."""
    assert isinstance(checkpoint.source, SafetensorsSource)
    return [info for info in checkpoint.source.infos.values() if info.path == path]


def _stays(checkpoint: Checkpoint, path: Path, pieces: list[Piece], jobs: list[Job]) -> bool:
    """Whether a file can be kept: nothing new is in it, nothing old goes."""
    changed = [job for job in jobs if not _is_kept(checkpoint, job)]
    gone = {name for job in changed for name in _stored_now(checkpoint, job.source)}
    return all(piece.unchanged for piece in pieces) and not gone & {
        info.name for info in _infos(checkpoint, path)
    }


def _is_kept(checkpoint: Checkpoint, job: Job) -> bool:
    return job.parameter.name == job.source and checkpoint.scheme(job.source) == job.scheme


def _counts(checkpoint: Checkpoint, piece: Piece) -> bool:
    """One piece per parameter of the checkpoint, for the progress."""
    job = piece.job
    first = job.planned()[0].name
    return job.parameter.name in checkpoint.parameters and piece.planned.name == first


def _write(checkpoint: Checkpoint, path: Path, pieces: list[Piece]) -> dict[str, float]:
    """-> parameter -> the most by which its float type moves a weight."""
    with SafetensorsWriter(path, [piece.planned for piece in pieces]) as writer:
        for piece in pieces:
            if piece.source is not None:
                for start, stop in _row_ranges(piece.source):
                    writer.write(piece.planned.name, read_rows(piece.source, start, stop))
        changed = {piece.job.module: piece.job for piece in pieces if piece.source is None}
        floats = [job for job in changed.values() if job.scheme is None]
        for job in changed.values():
            if job.scheme is not None:
                _write_codes(checkpoint, job, job.scheme, writer)
        return {job.parameter.name: _write_float(checkpoint, job, writer) for job in floats}


def _row_ranges(info: TensorInfo) -> Iterator[tuple[int, int]]:
    rows = info.shape[0]
    step = max(1, CHUNK_BYTES * rows // max(1, info.nbytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _write_codes(
    checkpoint: Checkpoint, job: Job, scheme: AnyScheme, writer: SafetensorsWriter
) -> None:
    for start, stop in chunks_of(job.parameter):
        quantized = checkpoint.quantized_rows(job.source, start, stop)
        if not isinstance(quantized, Quantized) or not isinstance(scheme, Scheme):
            raise RuntimeError(f"{job.module}: only integer schemes have other codes")
        for kind, array in encode(recode(quantized, scheme)).items():
            writer.write(f"{job.module}.{kind}", array)
    writer.write(f"{job.module}.{SHAPE}", np.array(job.parameter.shape, np.int64))


def _write_float(checkpoint: Checkpoint, job: Job, writer: SafetensorsWriter) -> float:
    """-> the most by which a weight moves."""
    error = 0.0
    for start, stop in chunks_of(job.parameter):
        values = checkpoint.rows(job.source, start, stop)
        stored = values.astype(DTYPES[job.float_dtype])
        error = max(error, float(np.abs(stored.astype(np.float32) - values).max(initial=0.0)))
        writer.write(job.parameter.name, stored)
    return error


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
