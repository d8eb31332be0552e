"""`dsconv export` between parsing and printing, one function and one report per format."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.checkpoint import Checkpoint, open_checkpoint
from ..convert.compressed_tensors_export import CompressedTensorsResult, export_compressed_tensors
from ..convert.gguf_export import GgufResult, export_gguf, is_single_file
from ..convert.gguf_vocabulary import TextSettings
from ..convert.native.export import NativeResult, export_native
from ..convert.onnx.export import ExportOptions, ExportResult, export_onnx
from ..convert.targets.choice import checker
from ..convert.targets.target import Target
from .chat import chat_template
from .console import progress, say, size_text
from .memory import peak_rss_bytes
from .outputs import check_output
from .tokenizer import TextTokenizer


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


def export_command(
    model: str, options: ExportOptions, output: Path, overwrite: bool
) -> ExportReport:
    """Write the graph that `options` describe, for any runtime that takes it."""
    return _export(model, lambda checkpoint: options, output, overwrite)


def export_target_command(
    model: str,
    target: Target,
    choose: Callable[[Checkpoint], ExportOptions],
    output: Path,
    overwrite: bool,
) -> ExportReport:
    """Write the graph that `choose` finds for the target; refused when it breaks its rules."""
    return _export(model, choose, output, overwrite, checker(target))


def _export(
    model: str,
    choose: Callable[[Checkpoint], ExportOptions],
    output: Path,
    overwrite: bool,
    check: Callable[[Path], None] = lambda folder: None,
) -> ExportReport:
    check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_checkpoint(model)
    options = choose(checkpoint)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_onnx(checkpoint, options, output, overwrite, advance, check)
    return ExportReport(result, output, options.target, time.perf_counter() - start)


@dataclass(frozen=True)
class CompressedTensorsReport:
    result: CompressedTensorsResult
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


def export_compressed_tensors_command(
    model: str, output: Path, copy: bool, overwrite: bool
) -> CompressedTensorsReport:
    check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_checkpoint(model)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_compressed_tensors(checkpoint, output, copy, overwrite, advance)
    return CompressedTensorsReport(result, output, time.perf_counter() - start)


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
    checkpoint = open_checkpoint(model)
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
    checkpoint = open_checkpoint(model)
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
