"""Quantize a checkpoint into the compressed-tensors layout, in bounded memory.

Without calibration: tensor by tensor in row chunks. With it: layer by layer, see `calibrated.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import output_folder
from ..errors import InputError, UnsupportedError
from ..quant.packing import pack_rows, pack_zero_points
from ..quant.rounding import METHODS, ScaleOverflow
from ..quant.scheme import Quantized, Scheme
from .checkpoint import CONFIG, Checkpoint
from .families.inventory import Parameter
from .manifest import Provenance, sha256_file, write_manifest
from .parallel import Workers
from .quantization_plan import Job, QuantizeOptions, plan, shards_of, tensors_of
from .safetensors_file import DTYPES, SafetensorsWriter
from .sources import INDEX

Advance = Callable[[int], None]

CHUNK_WEIGHTS = 1 << 20  # read, rounded and written at a time; one in flight per thread
BLOCK_WEIGHTS = 1 << 16  # rounded at a time: with its temporaries it stays in a core's L2 cache


@dataclass(frozen=True)
class QuantizeResult:
    parameters: int
    weight_bytes: int
    source_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Over all parameters, scales and zero points included."""
        return 8 * self.weight_bytes / self.parameters


def quantize_checkpoint(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda weights: None,
    windows: Sequence[Sequence[int]] = (),
) -> QuantizeResult:
    """Write the quantized checkpoint to the folder `output`.

    Args:
        advance: told the number of weights done, for a progress bar.
        windows: token ids to calibrate on, for the method that does.

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
    shards = shards_of(jobs)
    with output_folder(output, overwrite) as folder, ThreadPoolExecutor(1) as hasher:
        inputs = hasher.submit(_provenance, checkpoint)
        with QuantizedWriter(folder, shards) as writer:
            if windows:
                from .calibrated import quantize_calibrated

                quantize_calibrated(checkpoint, jobs, windows, writer, options.threads, advance)
            else:
                _quantize_freely(checkpoint, jobs, options, writer, advance)
        if len(shards) > 1:
            _write_index(shards, folder / INDEX)
        _write_json(folder / CONFIG, config)
        for name, content in checkpoint.side_files.items():
            (folder / name).write_bytes(content)
        weight_bytes = sum(t.nbytes for shard in shards.values() for t in tensors_of(shard))
        result = QuantizeResult(
            checkpoint.parameter_count,
            weight_bytes,
            sum(checkpoint.source.nbytes(job.source) for job in jobs),
        )
        recipe = {key: value for key, value in vars(options).items() if key != "threads"}
        facts = {"parameters": result.parameters, "bits_per_weight": result.bits_per_weight}
        if windows:
            facts["calibration_tokens"] = sum(map(len, windows))
        write_manifest(folder, "quantized-checkpoint", inputs.result(), recipe, facts)
    return result


class QuantizedWriter:
    """All shards of the output, open at once: parameters may come in any order."""

    def __init__(self, folder: Path, shards: dict[str, list[Job]]) -> None:
        self._folder, self._shards = folder, shards
        self._stack = ExitStack()
        self._writers: dict[str, SafetensorsWriter] = {}

    def __enter__(self) -> QuantizedWriter:
        for name, jobs in self._shards.items():
            tensors = tensors_of(jobs)
            writer = self._stack.enter_context(SafetensorsWriter(self._folder / name, tensors))
            self._writers.update({tensor.name: writer for tensor in tensors})
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)  # type: ignore[arg-type]

    def write_floats(self, job: Job, rows: NDArray[np.generic]) -> None:
        name = job.parameter.name
        self._writers[name].write(name, rows.astype(DTYPES[job.float_dtype], copy=False))

    def write_quantized(self, job: Job, quantized: Quantized) -> None:
        bits = quantized.scheme.bits
        self._write(job, "weight_packed", pack_rows(quantized.codes, bits))
        self._write(job, "weight_scale", quantized.scales)
        if quantized.zeros is not None:
            self._write(job, "weight_zero_point", pack_zero_points(quantized.zeros, bits))

    def finish_quantized(self, job: Job) -> None:
        self._write(job, "weight_shape", np.array(job.parameter.shape, np.int64))

    def _write(self, job: Job, kind: str, array: NDArray[np.generic]) -> None:
        name = f"{job.module}.{kind}"
        self._writers[name].write(name, array)


def _quantize_freely(
    checkpoint: Checkpoint,
    jobs: list[Job],
    options: QuantizeOptions,
    writer: QuantizedWriter,
    advance: Advance,
) -> None:
    """Every parameter by itself, without calibration."""
    with Workers(options.threads) as workers:
        for job in jobs:
            if job.scheme is None:
                copy_floats(checkpoint, job, writer, advance)
            else:
                _quantize(checkpoint, job, job.scheme, options, writer, workers, advance)


def chunks_of(parameter: Parameter) -> Iterator[tuple[int, int]]:
    """Row ranges of about CHUNK_WEIGHTS weights; multiples of 8 rows, the zero points' packing."""
    rows = parameter.shape[0]
    width = max(1, parameter.size // max(1, rows))
    step = max(8, CHUNK_WEIGHTS // width // 8 * 8)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def copy_floats(
    checkpoint: Checkpoint, job: Job, writer: QuantizedWriter, advance: Advance
) -> None:
    """Copy a parameter as it is, in row chunks, refusing values that are not finite."""
    bad = 0
    for start, stop in chunks_of(job.parameter):
        rows = checkpoint.source.rows(job.source, start, stop)
        bad += int(rows.size - np.isfinite(rows.astype(np.float32)).sum())
        writer.write_floats(job, rows)
        advance(rows.size)
    refuse_non_finite(job, bad)


def _quantize(
    checkpoint: Checkpoint,
    job: Job,
    scheme: Scheme,
    options: QuantizeOptions,
    writer: QuantizedWriter,
    workers: Workers,
    advance: Advance,
) -> None:
    """Round chunks in parallel and write them in order: the bytes do not depend on the threads."""

    def work(bounds: tuple[int, int]) -> tuple[Quantized | None, int, int]:
        weights = checkpoint.rows(job.source, *bounds)
        bad = int(weights.size - np.isfinite(weights).sum())
        return (
            (None if bad else round_in_blocks(weights, scheme, options.method)),
            bad,
            weights.size,
        )

    bad = 0
    try:
        for quantized, count, size in workers.in_order(work, chunks_of(job.parameter)):
            bad += count
            if quantized is not None and not bad:
                writer.write_quantized(job, quantized)
            advance(size)
    except ScaleOverflow as error:
        raise InputError(
            f"{checkpoint.origin}: tensor {job.source!r}: {error}",
            "the checkpoint is damaged; download it again",
        ) from error
    refuse_non_finite(job, bad)
    writer.finish_quantized(job)


def round_in_blocks(weights: NDArray[np.float32], scheme: Scheme, method: str) -> Quantized:
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


def refuse_non_finite(job: Job, count: int) -> None:
    if count:
        raise InputError(
            f"tensor {job.source!r}: {count} of {job.parameter.size} values are NaN or infinite",
            "the checkpoint is damaged; download it again",
        )


def _provenance(checkpoint: Checkpoint) -> Provenance:
    files = {path.name: sha256_file(path) for path in checkpoint.source.files()}
    return Provenance(checkpoint.origin.resolve().name, files)


def _write_index(shards: dict[str, list[Job]], path: Path) -> None:
    weight_map = {t.name: name for name, jobs in shards.items() for t in tensors_of(jobs)}
    total = sum(t.nbytes for jobs in shards.values() for t in tensors_of(jobs))
    _write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
