"""Quantize a checkpoint into the compressed-tensors layout, tensor by tensor in row chunks.

The tensors are laid out so that what a runtime may fuse lies side by side: the codes of query, key
and value, then their scales, then their biases; the same for gate and up. A graph can then name
one byte range for the fused matrix.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import output_folder
from ..errors import InputError, UnsupportedError, UsageError
from ..quant.packing import pack_rows, pack_zero_points, packed_row_bytes
from ..quant.rounding import METHODS, ScaleOverflow
from ..quant.scheme import Quantized, Scheme
from .checkpoint import CONFIG, Checkpoint, module_of
from .compressed_tensors import build_quantization_config
from .families import read_family
from .families.inventory import Parameter, Role, parameters_of
from .json_file import ConfigReader
from .manifest import Provenance, sha256_file, write_manifest
from .safetensors_file import DTYPES, PlannedTensor, SafetensorsWriter
from .sources import INDEX

Advance = Callable[[int], None]

FLOAT_BITS = 16  # "leave it as it is"
MAX_SHARD_BYTES = 5_000_000_000
CHUNK_WEIGHTS = 1 << 20  # read, rounded and written at a time; one in flight per thread
BLOCK_WEIGHTS = 1 << 16  # rounded at a time: with its temporaries it stays in a core's L2 cache


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user chose. `head_bits` None: as `bits`, or as an embedding with shared bytes."""

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    head_bits: int | None = None
    embedding_bits: int = FLOAT_BITS
    method: str = "search"
    threads: int = 2

    def __post_init__(self) -> None:
        Scheme(self.bits, self.group_size, self.symmetric)
        for name, bits in (("head", self.head_bits), ("embedding", self.embedding_bits)):
            if bits not in (None, 4, 8, FLOAT_BITS):
                raise UsageError(f"{name} bits: {bits} is not supported", "choose 4, 8 or 16")
        if self.method not in METHODS:
            raise UsageError(
                f"method: {self.method!r} is not known", f"choose {' or '.join(METHODS)}"
            )

    def scheme(self, bits: int) -> Scheme | None:
        return None if bits == FLOAT_BITS else Scheme(bits, self.group_size, self.symmetric)


@dataclass(frozen=True)
class QuantizeResult:
    parameters: int
    weight_bytes: int
    source_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Over all parameters, scales and zero points included."""
        return 8 * self.weight_bytes / self.parameters


@dataclass(frozen=True)
class _Job:
    """One output parameter: where its rows come from and how they are stored."""

    parameter: Parameter
    source: str
    scheme: Scheme | None
    float_dtype: str

    @property
    def module(self) -> str:
        return module_of(self.parameter.name)

    def planned(self) -> list[PlannedTensor]:
        """The tensors of this parameter, codes first; `weight_shape` is kept apart."""
        name, shape = self.parameter.name, self.parameter.shape
        if self.scheme is None:
            return [PlannedTensor(name, self.float_dtype, shape)]
        rows, columns = shape
        groups, bits = self.scheme.groups(columns), self.scheme.bits
        tensors = [
            PlannedTensor(
                f"{self.module}.weight_packed", "I32", (rows, packed_row_bytes(columns, bits) // 4)
            ),
            PlannedTensor(f"{self.module}.weight_scale", "F16", (rows, groups)),
        ]
        if not self.scheme.symmetric:
            words = -(-rows * bits // 32)
            tensors.append(
                PlannedTensor(f"{self.module}.weight_zero_point", "I32", (words, groups))
            )
        return tensors


def quantize_checkpoint(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda weights: None,
) -> QuantizeResult:
    """Write the quantized checkpoint to the folder `output`.

    Args:
        advance: told the number of weights done, for a progress bar.

    Raises:
        InputError: weights that are not finite, or too large for float16 scales.
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: the checkpoint is already quantized.
        UsageError: options that contradict each other for this checkpoint.
    """
    if checkpoint.quantization is not None:
        raise UnsupportedError(
            f"{checkpoint.origin}: already quantized", "start from the unquantized checkpoint"
        )
    config, jobs = plan(checkpoint, options)
    with output_folder(output, overwrite) as folder, ThreadPoolExecutor(1) as hasher:
        inputs = hasher.submit(_provenance, checkpoint)
        shards = _shards(jobs)
        for name, shard in shards.items():
            _write_shard(checkpoint, shard, options, folder / name, advance)
        if len(shards) > 1:
            _write_index(shards, folder / INDEX)
        _write_json(folder / CONFIG, config)
        for name, content in checkpoint.side_files.items():
            (folder / name).write_bytes(content)
        weight_bytes = sum(t.nbytes for shard in shards.values() for t in _tensors(shard))
        result = QuantizeResult(
            checkpoint.parameter_count,
            weight_bytes,
            sum(checkpoint.source.nbytes(job.source) for job in jobs),
        )
        recipe = {key: value for key, value in vars(options).items() if key != "threads"}
        facts = {"parameters": result.parameters, "bits_per_weight": result.bits_per_weight}
        write_manifest(folder, "quantized-checkpoint", inputs.result(), recipe, facts)
    return result


def plan(checkpoint: Checkpoint, options: QuantizeOptions) -> tuple[dict[str, Any], list[_Job]]:
    """Decide every parameter's scheme -> (config.json of the output, jobs in network order).

    A tied matrix is stored once when it is quantized as a whole. When only the head is to be
    quantized the two part: the head gets codes of its own and the embedding stays as it is.
    """
    decoder = checkpoint.decoder
    tied = decoder.config.tie_word_embeddings
    head_bits = options.head_bits
    if head_bits is None:
        shared = tied and options.embedding_bits != FLOAT_BITS
        head_bits = options.embedding_bits if shared else options.bits
    elif tied and options.embedding_bits != FLOAT_BITS and head_bits != options.embedding_bits:
        raise UsageError(
            f"head bits {head_bits} differ from embedding bits {options.embedding_bits}, "
            "but this model shares one matrix between them",
            "give both the same bits, or leave the embedding at 16",
        )
    config = dict(checkpoint.config)
    if tied and options.embedding_bits == FLOAT_BITS and head_bits != FLOAT_BITS:
        config["tie_word_embeddings"] = False
    bits = {
        Role.LINEAR: options.bits,
        Role.EMBEDDING: options.embedding_bits,
        Role.HEAD: head_bits,
        Role.VECTOR: FLOAT_BITS,
    }
    jobs = []
    for parameter in parameters_of(read_family(ConfigReader(config, CONFIG))):
        scheme = options.scheme(bits[parameter.role])
        if scheme is not None:
            scheme = scheme.for_columns(parameter.shape[1])
        in_source = parameter.name in checkpoint.parameters
        source = parameter.name if in_source else f"{decoder.table.name}.weight"
        jobs.append(_Job(parameter, source, scheme, checkpoint.float_dtype(source)))
    schemes = {job.module: job.scheme for job in jobs if job.parameter.role is not Role.VECTOR}
    # A tied head is a module too, though it has no tensor of its own.
    schemes.setdefault(decoder.head_linear.name, schemes[decoder.table.name])
    if any(schemes.values()):
        config["quantization_config"] = build_quantization_config(schemes, [decoder.table.name])
    return config, jobs


def _tensors(jobs: list[_Job]) -> list[PlannedTensor]:
    """Everything in a shard, in file order: group by group, same kinds side by side."""
    tensors: list[PlannedTensor] = []
    shapes: list[PlannedTensor] = []
    for group in _groups(jobs):
        columns = [job.planned() for job in group]
        for kind in range(max(map(len, columns))):
            tensors += [planned[kind] for planned in columns if kind < len(planned)]
        shapes += [
            PlannedTensor(f"{job.module}.weight_shape", "I64", (2,)) for job in group if job.scheme
        ]
    return tensors + shapes


def _groups(jobs: list[_Job]) -> Iterator[list[_Job]]:
    """Jobs of one input side by side, weights before biases."""
    group: list[_Job] = []
    for job in jobs:
        if group and job.parameter.group != group[-1].parameter.group:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _shards(jobs: list[_Job]) -> dict[str, list[_Job]]:
    """File name -> jobs; a group is never split."""
    shards: list[list[_Job]] = [[]]
    size = 0
    for group in _groups(jobs):
        nbytes = sum(tensor.nbytes for tensor in _tensors(group))
        if shards[-1] and size + nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += group
        size += nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": jobs for i, jobs in enumerate(shards)}


def _write_shard(
    checkpoint: Checkpoint, jobs: list[_Job], options: QuantizeOptions, path: Path, advance: Advance
) -> None:
    threads = max(1, options.threads)
    with SafetensorsWriter(path, _tensors(jobs)) as writer, ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            if job.scheme is None:
                _copy(checkpoint, job, writer, advance)
            else:
                _quantize(checkpoint, job, job.scheme, options, writer, pool, advance)


def _chunks(parameter: Parameter) -> Iterator[tuple[int, int]]:
    """Row ranges of about CHUNK_WEIGHTS weights; multiples of 8 rows, the zero points' packing."""
    rows = parameter.shape[0]
    width = max(1, parameter.size // max(1, rows))
    step = max(8, CHUNK_WEIGHTS // width // 8 * 8)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _copy(checkpoint: Checkpoint, job: _Job, writer: SafetensorsWriter, advance: Advance) -> None:
    bad = 0
    for start, stop in _chunks(job.parameter):
        rows = checkpoint.source.rows(job.source, start, stop)
        bad += int(rows.size - np.isfinite(rows.astype(np.float32)).sum())
        writer.write(job.parameter.name, rows.astype(DTYPES[job.float_dtype], copy=False))
        advance(rows.size)
    _refuse_non_finite(job, bad)


def _quantize(
    checkpoint: Checkpoint,
    job: _Job,
    scheme: Scheme,
    options: QuantizeOptions,
    writer: SafetensorsWriter,
    pool: ThreadPoolExecutor,
    advance: Advance,
) -> None:
    """Round chunks in parallel and write them in order: the bytes do not depend on the threads."""

    def work(start: int, stop: int) -> tuple[Quantized | None, int, int]:
        weights = checkpoint.rows(job.source, start, stop)
        bad = int(weights.size - np.isfinite(weights).sum())
        return (None if bad else _round(weights, scheme, options.method)), bad, weights.size

    bad = 0
    try:
        for quantized, count, size in _in_order(
            pool, work, _chunks(job.parameter), options.threads
        ):
            bad += count
            if quantized is not None and not bad:
                _write_rows(job, quantized, writer)
            advance(size)
    except ScaleOverflow as error:
        raise InputError(
            f"{checkpoint.origin}: tensor {job.source!r}: {error}",
            "the checkpoint is damaged; download it again",
        ) from error
    _refuse_non_finite(job, bad)
    shape = np.array(job.parameter.shape, np.int64)
    writer.write(f"{job.module}.weight_shape", shape)


def _round(weights: NDArray[np.float32], scheme: Scheme, method: str) -> Quantized:
    """Round in blocks that stay in cache; groups are independent, so the blocks do not show."""
    step = max(1, BLOCK_WEIGHTS // weights.shape[1])
    parts = [
        METHODS[method](weights[start : start + step], scheme)
        for start in range(0, len(weights), step)
    ]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        scheme,
    )


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[int, int], tuple[Quantized | None, int, int]],
    chunks: Iterator[tuple[int, int]],
    threads: int,
) -> Iterator[tuple[Quantized | None, int, int]]:
    """Results in the order of the chunks, at most one chunk beyond the busy threads in memory."""
    waiting: deque[Future[tuple[Quantized | None, int, int]]] = deque()
    try:
        for start, stop in chunks:
            waiting.append(pool.submit(work, start, stop))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _write_rows(job: _Job, quantized: Quantized, writer: SafetensorsWriter) -> None:
    bits = quantized.scheme.bits
    writer.write(f"{job.module}.weight_packed", pack_rows(quantized.codes, bits))
    writer.write(f"{job.module}.weight_scale", quantized.scales)
    if quantized.zeros is not None:
        zeros = pack_zero_points(quantized.zeros, bits)
        writer.write(f"{job.module}.weight_zero_point", zeros)


def _refuse_non_finite(job: _Job, count: int) -> None:
    if count:
        raise InputError(
            f"tensor {job.source!r}: {count} of {job.parameter.size} values are NaN or infinite",
            "the checkpoint is damaged; download it again",
        )


def _provenance(checkpoint: Checkpoint) -> Provenance:
    files = {path.name: sha256_file(path) for path in checkpoint.source.files()}
    return Provenance(checkpoint.origin.resolve().name, files)


def _write_index(shards: dict[str, list[_Job]], path: Path) -> None:
    weight_map = {t.name: name for name, jobs in shards.items() for t in _tensors(jobs)}
    total = sum(t.nbytes for jobs in shards.values() for t in _tensors(jobs))
    _write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
