"""Quantize a checkpoint into the compressed-tensors layout, in bounded memory.

Without calibration: tensor by tensor in row chunks. With it: layer by layer, see `calibrate.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv import __version__
from dsconv.atomic import MANIFEST, output_folder
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.jobs import Job, chunks_of, shards_of, tensors_of
from dsconv.convert.checkpoint.manifest import provenance_of, write_manifest
from dsconv.convert.checkpoint.matrix_layout import SHAPE, encode, has_shape_tensor, read_quantized
from dsconv.convert.checkpoint.tensors import (
    INDEX,
    HashedSource,
    SafetensorsSource,
    TensorSource,
    write_index,
)
from dsconv.convert.families import read_family
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.json_file import ConfigReader, write_json
from dsconv.convert.files.safetensors import (
    DTYPES,
    SafetensorsWriter,
    TensorInfo,
    read_tensor_infos,
)
from dsconv.convert.forward.workers import Workers
from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.progress import Advance
from dsconv.quant.scales import ScaleOverflow
from dsconv.quant.schemes import METHODS, QuantizedMatrix, Scheme, joined

from .inputs import GivenWindows, Preparation, prepared
from .journal import Journal
from .plan import CALIBRATED, QuantizeOptions, plan

DOUBTFUL_SQNR = 6.0  # dB: a quarter of the signal's power is error
DOUBTFUL_LOSS = 1.0  # dB below plain rounding

BLOCK_WEIGHTS = 1 << 16  # rounded at a time: with its temporaries it stays in a core's L2 cache


@dataclass(frozen=True)
class QuantizeResult:
    parameters: int
    weight_bytes: int
    source_bytes: int
    doubtful: tuple[str, ...] = ()  # matrices that a guard has marked
    calibration_kl: float | None = None  # nats per token, see `quantize_calibrated`

    @property
    def bits_per_weight(self) -> float:
        """Over all parameters, scales and zero points included."""
        return 8 * self.weight_bytes / self.parameters


@dataclass(frozen=True)
class MatrixReport:
    """How well a calibrated matrix was quantized.

    sqnr: power of the outputs aimed at over the power of their error on one calibration window, in
    dB (aimed at: those of the original weights on inputs moved towards the original model's by the
    strength of the prefix correction); sqnr_rounded: the same when rounded to nearest;
    damping: share of the mean diagonal that the factorisation needed;
    flat_rows: those whose codes are all alike though the weights are not.
    """

    module: str
    sqnr: float
    sqnr_rounded: float
    damping: float
    seconds: float
    flat_rows: int

    @property
    def doubtful(self) -> bool:
        """Worth a look: much error, codes that carry nothing, or worse than plain rounding."""
        return (
            self.sqnr < DOUBTFUL_SQNR
            or self.flat_rows > 0
            or self.sqnr < self.sqnr_rounded - DOUBTFUL_LOSS
        )

    def facts(self) -> dict[str, float]:
        """What is the same in every run."""
        return {
            "sqnr": self.sqnr,
            "sqnr_rounded": self.sqnr_rounded,
            "damping": self.damping,
            "flat_rows": self.flat_rows,
        }


Report = Callable[[MatrixReport], None]


def quantize_checkpoint(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda weights: None,
    windows: Sequence[Sequence[int]] = (),
    report: Report = lambda matrix: None,
    say: Callable[[str], None] = lambda line: None,
    preparation: Preparation | None = None,
) -> QuantizeResult:
    """Write the quantized checkpoint to the folder `output`, or finish what a crash has cut off.

    Args:
        advance: told the number of weights done, for a progress bar.
        windows: token ids to calibrate on, for the method that does.
        report: told of every calibrated matrix.
        say: told how the tuning goes.
        preparation: gives the windows, and bits per matrix, instead.

    Raises:
        InputError: weights that are not finite, or too large for float16 scales.
        OutputError: `output` exists, or the disk refuses, or an unfinished run with other options
            stands in the way.
        UnsupportedError: the checkpoint is already quantized.
        UsageError: options that contradict each other for this checkpoint.
    """
    refuse_quantized(checkpoint)
    plan(checkpoint, options)  # refuses contradictions before anything is written
    if options.method == CALIBRATED and not windows and preparation is None:
        raise UsageError(f"method {CALIBRATED} without calibration text", "give windows")
    preparation = preparation or GivenWindows(windows)
    purpose = {
        "versions": _versions(options),
        "options": options.recipe(),
        "inputs": _stamps(checkpoint.source),
        "beside them": _digest_beside(checkpoint),
        "calibration": preparation.purpose,
    }
    with (
        output_folder(output, overwrite, resume=True) as folder,
        Journal(folder, purpose, discard=overwrite) as journal,
        ThreadPoolExecutor(1) as hasher,
    ):
        made = prepared(folder, preparation)
        if made.allocation:
            options = replace(options, allocation=made.allocation)
        windows = made.windows if options.method == CALIBRATED else ()
        if options.tuning_epochs and len(windows) == 1:
            raise UsageError(
                "tuning with one window of text: it needs some to learn from and some to judge by",
                "give more --calibration-tokens, or leave out --tuning-epochs",
            )
        config, jobs = plan(checkpoint, options)
        shards = shards_of(jobs)
        inputs = hasher.submit(provenance_of, checkpoint)
        reports: list[MatrixReport] = []
        divergence = None
        with QuantizedWriter(folder, shards, journal.resumed) as writer:
            for job in jobs:
                if job.scheme is not None:
                    continue
                if journal.resumed:  # whose first line came after all of them
                    writer.skip(job)
                    advance(job.parameter.size)
                else:
                    copy_floats(checkpoint, job, writer, advance)
            if windows:
                from dsconv.convert.quantize.calibration.calibrate import quantize_calibrated

                reports, divergence = quantize_calibrated(
                    checkpoint, jobs, windows, writer, options, journal, advance, report
                )
                if options.tuning_epochs:
                    from .tune import tune_written

                    decoder = read_family(ConfigReader(config, CONFIG))
                    tune_written(checkpoint, decoder, jobs, windows, writer, options, journal, say)
            else:
                _quantize_freely(checkpoint, jobs, options, writer, journal, advance)
        if len(shards) > 1:
            _write_index(shards, folder / INDEX)
        write_json(folder / CONFIG, config)
        for name, content in checkpoint.side_files.items():
            (folder / name).write_bytes(content)
        weight_bytes = sum(t.nbytes for shard in shards.values() for t in tensors_of(shard))
        result = QuantizeResult(
            checkpoint.parameter_count,
            weight_bytes,
            sum(checkpoint.source.nbytes(job.source) for job in jobs),
            tuple(entry.module for entry in reports if entry.doubtful),
            divergence,
        )
        facts: dict[str, Any] = {
            "parameters": result.parameters,
            "bits_per_weight": result.bits_per_weight,
        }
        if windows:
            facts["calibration"] = dict(preparation.purpose)
            facts["calibration_tokens"] = sum(map(len, windows))
            facts["calibration_kl"] = divergence
            facts["matrices"] = {entry.module: entry.facts() for entry in reports}
        kind, source, recipe = "quantized-checkpoint", inputs.result(), options.recipe()
        written = [*shards, CONFIG, *checkpoint.side_files, *([INDEX] if len(shards) > 1 else [])]
        write_manifest(
            folder,
            kind,
            source,
            recipe,
            facts,
            FileHashes().by_name(folder / name for name in written),
        )
        journal.finish({*written, MANIFEST})
    return result


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raises UnsupportedError."""
    if checkpoint.quantization is not None:
        raise UnsupportedError(
            f"{checkpoint.origin}: already quantized", "start from the unquantized checkpoint"
        )


def _versions(options: QuantizeOptions) -> dict[str, str]:
    """What else decides the bytes: calibration computes in the processor's type, with torch."""
    versions = {"dsconv": __version__}
    if options.method == CALIBRATED:
        import torch

        from dsconv.convert.quantize.calibration.calibrate import forward_dtype

        versions |= {"torch": torch.__version__, "forward": str(forward_dtype())}
    return versions


def _digest_beside(checkpoint: Checkpoint) -> str:
    """One hash over config and tokenizer, which decide over calibrated weights too."""
    digest = hashlib.sha256(json.dumps(dict(checkpoint.config), sort_keys=True).encode())
    for name, content in sorted(checkpoint.side_files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _stamps(source: TensorSource) -> dict[str, Any]:
    """What changes when a file does, without reading it."""
    if isinstance(source, HashedSource):
        return dict(source.sha256())
    states = {path.name: path.stat() for path in source.files()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


class QuantizedWriter:
    """All shards of the output, open at once: parameters may come in any order.

    resume: the files of an earlier run are there; what it has written is told by `skip`.
    """

    def __init__(self, folder: Path, shards: dict[str, list[Job]], resume: bool = False) -> None:
        self.paths = [folder / name for name in shards]
        self._shards = shards
        self._resume = resume
        self._stack = ExitStack()
        self._files: list[SafetensorsWriter] = []
        self._writers: dict[str, SafetensorsWriter] = {}
        self._infos: dict[str, TensorInfo] = {}

    def __enter__(self) -> QuantizedWriter:
        for path, jobs in zip(self.paths, self._shards.values(), strict=True):
            tensors = tensors_of(jobs)
            writer = SafetensorsWriter(path, tensors, resume=self._resume)
            self._files.append(self._stack.enter_context(writer))
            self._writers.update({tensor.name: writer for tensor in tensors})
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)  # type: ignore[arg-type]

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def skip(self, job: Job) -> None:
        """An earlier run has written the job."""
        names = [tensor.name for tensor in job.planned()]
        if job.scheme is not None and has_shape_tensor(job.scheme):
            names.append(f"{job.module}.{SHAPE}")
        for name in names:
            self._writers[name].skip(name)

    def read_quantized(self, job: Job, start: int, stop: int) -> QuantizedMatrix:
        """Rows of a job that was written and flushed."""
        if job.scheme is None:
            raise RuntimeError(f"{job.module} is not quantized")
        columns = job.parameter.shape[1]
        return read_quantized(self._source(), job.module, job.scheme, columns, start, stop)

    def read_floats(self, job: Job) -> NDArray[np.float32]:
        """A parameter that was written and flushed as it is."""
        rows = self._source().rows(job.parameter.name, 0, job.parameter.shape[0])
        return np.require(rows.astype(np.float32), requirements="W")

    def _source(self) -> SafetensorsSource:
        if not self._infos:
            self.flush()
            for path in self.paths:
                self._infos.update(read_tensor_infos(path))
        return SafetensorsSource(self._infos)

    def write_floats(self, job: Job, rows: NDArray[np.generic]) -> None:
        name = job.parameter.name
        self._writers[name].write(name, rows.astype(DTYPES[job.float_dtype], copy=False))

    def rewrite(self, name: str, array: NDArray[np.generic]) -> None:
        """Other numbers for a tensor that was written before."""
        self._writers[name].rewind(name)
        self._writers[name].write(name, array)

    def write_quantized(self, job: Job, quantized: QuantizedMatrix) -> None:
        for kind, array in encode(quantized).items():
            self._write(job, kind, array)

    def finish_quantized(self, job: Job) -> None:
        if job.scheme is not None and has_shape_tensor(job.scheme):
            self._write(job, SHAPE, np.array(job.parameter.shape, np.int64))

    def _write(self, job: Job, kind: str, array: NDArray[np.generic]) -> None:
        name = f"{job.module}.{kind}"
        self._writers[name].write(name, array)


def _quantize_freely(
    checkpoint: Checkpoint,
    jobs: list[Job],
    options: QuantizeOptions,
    writer: QuantizedWriter,
    journal: Journal,
    advance: Advance,
) -> None:
    """Every parameter by itself, without calibration."""
    done = {module for record in journal.records for module in record["modules"]}
    fresh: list[str] = []
    with Workers(options.threads) as workers:
        for job in jobs:
            if job.scheme is None:
                continue
            if job.module in done:
                writer.skip(job)
                advance(job.parameter.size)
                continue
            _quantize(checkpoint, job, job.scheme, options, writer, workers, advance)
            fresh.append(job.module)
            if journal.due():
                writer.flush()
                journal.append({"modules": fresh}, writer.paths)
                fresh = []


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

    def work(bounds: tuple[int, int]) -> tuple[QuantizedMatrix | None, int, int]:
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


def round_in_blocks(weights: NDArray[np.float32], scheme: Scheme, method: str) -> QuantizedMatrix:
    """Round in blocks that stay in cache; groups are independent, so the blocks do not show."""
    step = max(1, BLOCK_WEIGHTS // weights.shape[1])
    return joined(
        [
            METHODS[method](weights[start : start + step], scheme)
            for start in range(0, len(weights), step)
        ]
    )


def refuse_non_finite(job: Job, count: int) -> None:
    if count:
        raise InputError(
            f"tensor {job.source!r}: {count} of {job.parameter.size} values are NaN or infinite",
            "the checkpoint is damaged; download it again",
        )


def _write_index(shards: dict[str, list[Job]], path: Path) -> None:
    weight_map = {t.name: name for name, jobs in shards.items() for t in tensors_of(jobs)}
    total = sum(t.nbytes for jobs in shards.values() for t in tensors_of(jobs))
    write_index(path, weight_map, total)
