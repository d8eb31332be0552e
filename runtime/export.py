"""`dsconv export` between parsing and printing, one function and one report per format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.ascend.export import export_ascend
from dsconv.convert.formats.compressed_tensors.export import export_compressed_tensors
from dsconv.convert.formats.gguf.export import GgufResult, export_gguf, is_single_file
from dsconv.convert.formats.gguf.write_tokenizer import TextSettings
from dsconv.convert.formats.native.export import NativeResult, export_native
from dsconv.convert.formats.onnx.export import ExportOptions, ExportResult, export_onnx
from dsconv.convert.formats.repack import RepackResult
from dsconv.convert.targets.choice import checker, choose_format, choose_options
from dsconv.convert.targets.table import find_target
from dsconv.convert.targets.target import Target
from dsconv.errors import UnsupportedError, UsageError
from dsconv.runtime.text.chat_template import chat_template
from dsconv.runtime.text.tokenizer import TextTokenizer

from .console import progress, say, size_text
from .memory import peak_rss_bytes
from .model_paths import open_model
from .outputs import check_output

DEFAULT_TARGET = "cpu"
FORMATS = ("onnx", "native", "gguf", "compressed-tensors", "ascend")


@dataclass(frozen=True)
class ExportReport:
    result: ExportResult
    output: Path
    target: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "target": self.target,
            "bytes_written": self.result.bytes_written,
            "bytes_linked": self.result.bytes_linked,
            "files": list(self.result.files),
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def show(self) -> None:
        r = self.result
        say(
            f"{self.output}: for {self.target}, {size_text(r.bytes_written)} written, "
            f"{size_text(r.bytes_linked)} linked to the checkpoint's own files, "
            f"{self.seconds:.1f} s"
        )


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
        if self.format is not None and self.format not in FORMATS:
            raise UnsupportedError(
                f"format {self.format!r} is not supported yet", f"use --format {', '.join(FORMATS)}"
            )
        implied = self.format == "ascend" and self.target == DEFAULT_TARGET
        target = find_target("torch:npu" if implied else self.target)
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


class Report(Protocol):
    def to_json(self) -> dict[str, Any]: ...

    def show(self) -> None: ...


def export_command(model: str, request: ExportRequest, output: Path, overwrite: bool) -> Report:
    """Write what was asked for; a graph that breaks its target's own rules is refused.

    Raises:
        UsageError, InputError, UnsupportedError, OutputError: with the cure.
    """
    format, target = request.resolved()
    if format == "native":
        return export_native_command(model, output, overwrite)
    if format == "gguf":
        return export_gguf_command(model, output, overwrite)
    if format in REPACKED:
        return export_repacked_command(model, format, output, request.copy, overwrite)
    return export_graph_command(model, request, target, output, overwrite)


def export_graph_command(
    model: str, request: ExportRequest, target: Target, output: Path, overwrite: bool
) -> ExportReport:
    check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_model(model)
    options = request.graph_options(target, checkpoint)
    # A dialect that somebody named is theirs: it need not suit what the table says of the CPU.
    check = checker(target) if request.dialect is None else lambda folder: None
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_onnx(checkpoint, options, output, overwrite, advance, check)
    return ExportReport(result, output, options.target, time.perf_counter() - start)


@dataclass(frozen=True)
class RepackReport:
    result: RepackResult
    output: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "bytes_written": self.result.bytes_written,
            "bytes_linked": self.result.bytes_linked,
            "files": list(self.result.files),
            "notes": list(self.result.notes),
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def show(self) -> None:
        r = self.result
        say(
            f"{self.output}: {size_text(r.bytes_written)} written, {size_text(r.bytes_linked)} "
            f"linked to the checkpoint's own files, {self.seconds:.1f} s"
        )
        for note in r.notes:
            say(f"note: {note}")


REPACKED = {"compressed-tensors": export_compressed_tensors, "ascend": export_ascend}


def export_repacked_command(
    model: str, format: str, output: Path, copy: bool, overwrite: bool
) -> RepackReport:
    check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_model(model)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = REPACKED[format](checkpoint, output, copy, overwrite, advance)
    return RepackReport(result, output, time.perf_counter() - start)


@dataclass(frozen=True)
class GgufReport:
    result: GgufResult
    output: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "bytes_written": self.result.bytes_written,
            "bits_per_weight": self.result.bits_per_weight,
            "types": dict(self.result.types),
            "notes": list(self.result.notes),
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def show(self) -> None:
        r = self.result
        types = ", ".join(f"{count} {name}" for name, count in r.types.items())
        say(
            f"{self.output}: {size_text(r.bytes_written)}, {r.bits_per_weight:.2f} bits per "
            f"weight, tensors: {types}, {self.seconds:.1f} s"
        )
        for note in r.notes:
            say(f"note: {note}")


def export_gguf_command(model: str, output: Path, overwrite: bool) -> GgufReport:
    check_output(model, output, overwrite, is_single_file(output))
    start = time.perf_counter()
    checkpoint = open_model(model)
    settings = _text_settings(checkpoint)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_gguf(checkpoint, settings, output, overwrite, advance)
    return GgufReport(result, output, time.perf_counter() - start)


@dataclass(frozen=True)
class NativeReport:
    result: NativeResult
    output: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "bytes_written": self.result.bytes_written,
            "bits_per_weight": self.result.bits_per_weight,
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def show(self) -> None:
        r = self.result
        say(
            f"{self.output}: {size_text(r.bytes_written)}, {r.bits_per_weight:.2f} bits per "
            f"weight, {self.seconds:.1f} s"
        )


def export_native_command(model: str, output: Path, overwrite: bool) -> NativeReport:
    check_output(model, output, overwrite, single_file=True)
    start = time.perf_counter()
    checkpoint = open_model(model)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_native(checkpoint, output, overwrite, advance)
    return NativeReport(result, output, time.perf_counter() - start)


def _text_settings(checkpoint: Checkpoint) -> TextSettings:
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    return TextSettings(
        tokenizer.bos_id,
        tokenizer.stop_ids,
        tokenizer.special_tokens.get("pad_token"),
        bool(tokenizer.encode_prompt("")),
        chat_template(checkpoint.side_files),
    )
