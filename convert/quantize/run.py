"""Quantize a checkpoint into the compressed-tensors layout, in bounded memory.

Without calibration: tensor by tensor in row chunks (`rounding.py`). With it: layer by layer, see
`calibration/calibrate.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.atomic import MANIFEST, output_folder
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.jobs import Job, shards_of, tensors_of
from dsconv.convert.checkpoint.manifest import Provenance, provenance_of, write_manifest
from dsconv.convert.checkpoint.tensors import HashedSource, TensorSource, write_index
from dsconv.convert.checkpoint.weight_files import INDEX
from dsconv.convert.families import read_family
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.json_file import ConfigReader, write_json
from dsconv.errors import UnsupportedError, UsageError

from .inputs import GivenWindows, Preparation, prepared, refuse_tokens_beyond
from .journal import Journal
from .matrix_report import MatrixReport
from .options import CALIBRATED, QuantizeOptions
from .plan import plan
from .rounding import copy_unquantized, round_freely
from .run_state import SILENT, Listeners, QuantizeRun
from .writer import QuantizedWriter

NO_TEXT = GivenWindows()


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


def quantize_checkpoint(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    output: Path,
    overwrite: bool = False,
    preparation: Preparation = NO_TEXT,
    listeners: Listeners = SILENT,
) -> QuantizeResult:
    """Write the quantized checkpoint to the folder `output`, or finish what a crash has cut off.

    Args:
        preparation: gives the token ids to calibrate on, for the method that does, and the bits per
            matrix where these are not in the options.

    Raises:
        InputError: weights that are not finite, or too large for float16 scales.
        OutputError: `output` exists, or the disk refuses, or an unfinished run with other options
            stands in the way.
        UnsupportedError: the checkpoint is already quantized.
        UsageError: options that contradict each other for this checkpoint.
    """
    refuse_quantized(checkpoint)
    plan(checkpoint, options)  # refuses contradictions before anything is written
    has_no_text = isinstance(preparation, GivenWindows) and not preparation.windows
    if options.method == CALIBRATED and has_no_text:
        raise UsageError(f"method {CALIBRATED} without calibration text", "use windows")
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
        planned = _prepare(checkpoint, options, folder, preparation)
        source = hasher.submit(provenance_of, checkpoint)
        reports, divergence = _write(planned, folder, journal, listeners)
        result = planned.result(reports, divergence)
        facts = _facts(planned, result, reports)
        journal.finish({*_seal(planned, folder, source.result(), facts), MANIFEST})
    return result


@dataclass(frozen=True)
class _Planned:
    """What will be written: the output's config, and its parameters."""

    checkpoint: Checkpoint
    options: QuantizeOptions
    windows: Sequence[Sequence[int]]
    text: Mapping[str, Any]
    config: Mapping[str, Any]
    jobs: list[Job]

    @cached_property
    def shards(self) -> dict[str, list[Job]]:
        return shards_of(self.jobs)

    def result(self, reports: Sequence[MatrixReport], divergence: float | None) -> QuantizeResult:
        return QuantizeResult(
            self.checkpoint.parameter_count,
            sum(t.nbytes for shard in self.shards.values() for t in tensors_of(shard)),
            sum(self.checkpoint.source.nbytes(job.source) for job in self.jobs),
            tuple(entry.module for entry in reports if entry.doubtful),
            divergence,
        )


def _prepare(
    checkpoint: Checkpoint, options: QuantizeOptions, folder: Path, preparation: Preparation
) -> _Planned:
    made = prepared(folder, preparation)
    if made.allocation:
        options = replace(options, allocation=made.allocation)
    refuse_tokens_beyond(made.windows, checkpoint.decoder.config.vocab_size)
    windows = made.windows if options.method == CALIBRATED else ()
    if options.tuning_epochs and len(windows) == 1:
        raise UsageError(
            "tuning with one window of text: it needs some to learn from and some to judge by",
            "use more --calibration-tokens, or leave out --tuning-epochs",
        )
    return _Planned(checkpoint, options, windows, preparation.purpose, *plan(checkpoint, options))


def _write(
    planned: _Planned, folder: Path, journal: Journal, listeners: Listeners
) -> tuple[Sequence[MatrixReport], float | None]:
    """The weights -> how calibration went, see `quantize_calibrated`."""
    with QuantizedWriter(folder, planned.shards, journal.resumed) as writer:
        run = QuantizeRun(
            planned.checkpoint,
            planned.jobs,
            planned.windows,
            writer,
            planned.options,
            journal,
            listeners,
        )
        copy_unquantized(run)
        if not planned.windows:
            round_freely(run)
            return (), None
        from .calibration.calibrate import quantize_calibrated  # torch

        found = quantize_calibrated(run)
        if planned.options.tuning_epochs:
            from .tune import tune_written  # torch

            tune_written(run, read_family(ConfigReader(planned.config, CONFIG)))
        return found


def _facts(
    planned: _Planned, result: QuantizeResult, reports: Sequence[MatrixReport]
) -> dict[str, Any]:
    """For the manifest."""
    facts: dict[str, Any] = {
        "parameters": result.parameters,
        "bits_per_weight": result.bits_per_weight,
    }
    if planned.windows:
        facts["calibration"] = dict(planned.text)
        facts["calibration_tokens"] = sum(map(len, planned.windows))
        facts["calibration_kl"] = result.calibration_kl
        facts["matrices"] = {entry.module: entry.facts() for entry in reports}
    return facts


def _seal(
    planned: _Planned, folder: Path, source: Provenance, facts: Mapping[str, Any]
) -> list[str]:
    """Everything beside the weights, the manifest last -> the names of all files it speaks of."""
    shards, side_files = planned.shards, planned.checkpoint.side_files
    if len(shards) > 1:
        weight_map = {t.name: name for name, jobs in shards.items() for t in tensors_of(jobs)}
        total = sum(t.nbytes for jobs in shards.values() for t in tensors_of(jobs))
        write_index(folder / INDEX, weight_map, total)
    write_json(folder / CONFIG, planned.config)
    for name, content in side_files.items():
        (folder / name).write_bytes(content)
    written = [*shards, CONFIG, *side_files, *([INDEX] if len(shards) > 1 else [])]
    digests = FileHashes().by_name(folder / name for name in written)
    write_manifest(folder, "quantized-checkpoint", source, planned.options.recipe(), facts, digests)
    return written


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

        from dsconv.convert.forward.torch_ops import forward_dtype

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
