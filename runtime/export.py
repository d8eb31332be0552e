"""Export a model to what runs it: one table of exporters, one report of what was written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.ascend.export import export_ascend
from dsconv.convert.formats.compressed_tensors.export import export_compressed_tensors
from dsconv.convert.formats.gguf.export import GgufResult, export_gguf, is_single_file
from dsconv.convert.formats.gguf.write_tokenizer import TextSettings
from dsconv.convert.formats.native.export import NativeResult, export_native
from dsconv.convert.formats.onnx.export import ExportOptions, ExportResult, export_onnx
from dsconv.convert.formats.repack import RepackResult
from dsconv.convert.targets.choice import checker, choose_format, choose_options
from dsconv.convert.targets.table import PROGRAMS, find_target, plain
from dsconv.convert.targets.target import Target
from dsconv.errors import UnsupportedError, UsageError, choose
from dsconv.progress import Advance
from dsconv.runtime.text.chat_template import chat_template
from dsconv.runtime.text.tokenizer import TextTokenizer

from .console import progress, size_text
from .memory import peak_rss_bytes
from .model_paths import check_output, open_model

DEFAULT_TARGET = "cpu"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written. Of a folder: how much of it is linked, its files; of a file: its bits.

    target: of an ONNX graph. types: of GGUF, block type -> tensors. notes: what is stored in
    another way than in the checkpoint, and why. None where a format has no such thing.
    """

    output: Path
    target: str | None = None
    bytes_written: int
    bytes_linked: int | None = None
    bits_per_weight: float | None = None
    types: Mapping[str, int] | None = None
    files: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if value is not None}
        return {**facts, "output": str(self.output), "peak_rss_bytes": peak_rss_bytes()}

    def words(self) -> str:
        """A line for people, and one per note."""
        written = size_text(self.bytes_written)
        facts = [] if self.target is None else [f"for {self.target}"]
        if self.bytes_linked is None:
            facts.append(written)
        else:
            linked = f"{size_text(self.bytes_linked)} linked to the checkpoint's own files"
            facts += [f"{written} written", linked]
        if self.bits_per_weight is not None:
            facts.append(f"{self.bits_per_weight:.2f} bits per weight")
        if self.types is not None:
            counts = ", ".join(f"{count} {name}" for name, count in self.types.items())
            facts.append(f"tensors: {counts}")
        line = f"{self.output}: {', '.join(facts)}, {self.seconds:.1f} s"
        return "\n".join([line, *(f"note: {note}" for note in self.notes or ())])


@dataclass(frozen=True)
class ExportRequest:
    """What to write: `format` None is the target's first; the last four are of ONNX graphs."""

    format: str | None = None
    target: str = DEFAULT_TARGET
    dialect: str | None = None
    accuracy_level: int = 4
    context_length: int | None = None
    prefill_length: int | None = None
    copy: bool = False

    def resolved(self) -> tuple[str, Target]:
        """-> the format and the row of the target.

        Raises:
            UsageError: no such target, or a dialect for one that has its own.
            UnsupportedError: no such format, or none that the target reads.
        """
        if self.format is not None and self.format not in EXPORTERS:
            raise UnsupportedError(
                f"format {self.format!r} is not supported yet", _cure_of_format(self.format)
            )
        implied = self.format == "ascend" and self.target == DEFAULT_TARGET
        target = find_target("torch:npu" if implied else self.target, self.format)
        format = choose_format(target, self.format)
        if self.dialect is not None and self.target != DEFAULT_TARGET and format == "onnx":
            raise UsageError(
                f"--dialect {self.dialect}: target {self.target} has one of its own",
                "leave out --dialect",
            )
        return format, target

    def graph_options(self, target: Target, checkpoint: Checkpoint) -> ExportOptions:
        if self.dialect is not None:
            return ExportOptions(self.dialect, self.accuracy_level, self.context_length, self.copy)
        return choose_options(
            target,
            checkpoint,
            self.accuracy_level,
            self.context_length,
            self.prefill_length,
            self.copy,
        )


@dataclass(frozen=True)
class ExportJob:
    """A model that is open, what becomes of it, and where."""

    checkpoint: Checkpoint
    request: ExportRequest
    target: Target
    output: Path
    overwrite: bool
    advance: Advance


@dataclass(frozen=True)
class Exporter:
    """Who writes a format, and whether an output of that name is a file and no folder."""

    write: Callable[[ExportJob], ExportResult | NativeResult | GgufResult | RepackResult]
    is_single_file: Callable[[Path], bool] = lambda output: False


def export_model(model: str, request: ExportRequest, output: Path, overwrite: bool) -> ExportReport:
    """Write what was asked for; a graph that breaks its target's own rules is refused.

    Raises:
        UsageError, InputError, UnsupportedError, OutputError: with the cure.
    """
    format, target = request.resolved()
    exporter = EXPORTERS[format]
    check_output(model, output, overwrite, exporter.is_single_file(output))
    start = time.perf_counter()
    checkpoint = open_model(model)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        job = ExportJob(checkpoint, request, target, output, overwrite, advance)
        result = exporter.write(job)
    return ExportReport(
        output=output,
        target=target.name if isinstance(result, ExportResult) else None,
        seconds=time.perf_counter() - start,
        **vars(result),
    )


def _cure_of_format(word: str) -> str:
    """For a format that nobody writes: what a program of that name reads, or the nearest."""
    reads = PROGRAMS.get(plain(word))
    return choose(word, EXPORTERS) if reads is None else f"use --format {reads}"


def _write_onnx(job: ExportJob) -> ExportResult:
    options = job.request.graph_options(job.target, job.checkpoint)
    # A dialect that somebody named is theirs: it need not suit what the table says of the CPU.
    check = checker(job.target) if job.request.dialect is None else lambda folder: None
    return export_onnx(job.checkpoint, options, job.output, job.overwrite, job.advance, check)


def _write_native(job: ExportJob) -> NativeResult:
    return export_native(job.checkpoint, job.output, job.overwrite, job.advance)


def _write_gguf(job: ExportJob) -> GgufResult:
    settings = _text_settings(job.checkpoint)
    return export_gguf(job.checkpoint, settings, job.output, job.overwrite, job.advance)


def _write_compressed_tensors(job: ExportJob) -> RepackResult:
    copy = job.request.copy
    return export_compressed_tensors(job.checkpoint, job.output, copy, job.overwrite, job.advance)


def _write_ascend(job: ExportJob) -> RepackResult:
    copy = job.request.copy
    return export_ascend(job.checkpoint, job.output, copy, job.overwrite, job.advance)


EXPORTERS = {
    "onnx": Exporter(_write_onnx),
    "native": Exporter(_write_native, lambda output: True),
    "gguf": Exporter(_write_gguf, is_single_file),
    "compressed-tensors": Exporter(_write_compressed_tensors),
    "ascend": Exporter(_write_ascend),
}


def _text_settings(checkpoint: Checkpoint) -> TextSettings:
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    return TextSettings(
        tokenizer.bos_id,
        tokenizer.stop_ids,
        tokenizer.special_tokens.get("pad_token"),
        bool(tokenizer.encode_prompt("")),
        chat_template(checkpoint.side_files),
        tokenizer.to_json().encode(),
    )
