"""What the commands do between parsing and printing, and their tables for people."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic import MANIFEST, partial_of, refuse_existing
from ..convert.checkpoint import Checkpoint, generation_config, open_checkpoint
from ..convert.compressed_tensors_export import CompressedTensorsResult, export_compressed_tensors
from ..convert.gguf_export import GgufResult, export_gguf, is_single_file
from ..convert.gguf_vocabulary import TextSettings
from ..convert.inspect import Description
from ..convert.native.export import NativeResult, export_native
from ..convert.onnx.export import ExportOptions, ExportResult, export_onnx
from ..convert.preparation import Prepared
from ..convert.quantization_plan import (
    CALIBRATED,
    FLOAT_ACTIVATIONS,
    QuantizeOptions,
    Target,
    read_allocation,
)
from ..convert.quantized import MatrixReport, QuantizeResult, quantize_checkpoint
from ..errors import UsageError
from .calibration import CalibrationOptions, calibration_windows
from .chat import chat_template
from .console import progress, quantity, say, size_text
from .demo import DemoResult, run_demo
from .load import Loaded, load
from .memory import peak_rss_bytes
from .plan import refuse_what_cannot_fit
from .run import Answer, answer
from .sampling import from_generation_config
from .thinking import Kind
from .tokenizer import TextTokenizer
from .verify import Verdict, VerifyOptions, plan_windows, read_text
from .verify import verify as verify_sessions

Overrides = tuple["float | None", "float | None", "int | None", "int | None"]


@dataclass(frozen=True)
class QuantizeReport:
    result: QuantizeResult
    output: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "parameters": self.result.parameters,
            "bits_per_weight": self.result.bits_per_weight,
            "size_bytes": self.result.weight_bytes,
            "seconds": self.seconds,
            "source_bytes_per_second": self.result.source_bytes / max(self.seconds, 1e-9),
            "peak_rss_bytes": peak_rss_bytes(),
            "doubtful_matrices": list(self.result.doubtful),
            "calibration_kl": self.result.calibration_kl,
        }

    def show(self) -> None:
        r = self.result
        if r.doubtful:
            say(
                f"warning: {len(r.doubtful)} matrices lost much, {r.doubtful[0]} first: see "
                f"facts.matrices in {self.output / MANIFEST}"
            )
        say(
            f"{self.output}: {quantity(r.parameters)}parameters, {r.bits_per_weight:.2f} bits per "
            f"weight, {size_text(r.weight_bytes)}, {self.seconds:.1f} s "
            f"({size_text(r.source_bytes / max(self.seconds, 1e-9))}/s), "
            f"peak memory {size_text(peak_rss_bytes())}"
            + ("" if r.calibration_kl is None else f", KL {r.calibration_kl:.3g} while calibrating")
        )


def _check_output(model: str, output: Path, overwrite: bool, single_file: bool = False) -> None:
    """Fail before any work: the output is taken, or replacing it would remove the input."""
    refuse_existing(output, overwrite, single_file)
    source = Path(model).expanduser().resolve()
    if os.path.exists(output) and output.resolve() in (source, *source.parents):
        raise UsageError(f"{output}: holds the input", "choose another folder with -o")


def quantize_command(
    model: str,
    choose: Callable[[bool, bool], QuantizeOptions],
    output: Path,
    overwrite: bool,
    calibration: CalibrationOptions,
    target: Target | None = None,
    recipe: Path | None = None,
) -> QuantizeReport:
    """Quantize, calibrated where that was asked for or is the default and the model can write.

    Args:
        choose: gives the options for a model that can write its calibration text, and whose head
            is its embedding.
    """
    options = choose(True, False)
    if target is not None and recipe is not None:
        raise UsageError("a target and a recipe", "give one of the two")
    if target is not None and options.activations != FLOAT_ACTIVATIONS:
        raise UsageError(
            "a target with int8 activations", "leave out --target-bpw, --target-size and --max-kl"
        )
    calibrates = options.method == CALIBRATED
    if calibration.sources and not calibrates and target is None:
        raise UsageError(
            f"method {options.method!r} takes no calibration text",
            f"add --method {CALIBRATED}, or leave out --calibration",
        )
    _check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_checkpoint(model)
    tied = checkpoint.decoder.config.tie_word_embeddings
    options = choose(True, tied)
    if calibrates and choose(False, tied).method != CALIBRATED:  # nobody asked for it
        from .self_calibration import why_it_cannot_write

        reason = why_it_cannot_write(checkpoint)
        if reason is not None:
            say(f"warning: no calibration text, so weights are rounded by search: {reason}")
            options, calibrates = choose(False, tied), False
    if recipe is not None:
        options = replace(options, allocation=read_allocation(recipe))
    refuse_what_cannot_fit(checkpoint, options, output, calibration, target)
    preparation = None
    if calibrates or target is not None:
        preparation = TextAndBits(checkpoint, options, calibration, target)
    show = _show_matrix if sys.stderr.isatty() else lambda matrix: None
    try:
        with progress("quantize", checkpoint.parameter_count, "weights") as advance:
            result = quantize_checkpoint(
                checkpoint,
                options,
                output,
                overwrite,
                advance,
                report=show,
                say=say,
                preparation=preparation,
            )
    except (KeyboardInterrupt, SystemExit):
        say(f"interrupted; the same command goes on from {partial_of(output)}")
        raise
    return QuantizeReport(result, output, time.perf_counter() - start)


@dataclass(frozen=True)
class TextAndBits:
    """The calibration text and, with a target, the bits per matrix (a `Preparation`)."""

    checkpoint: Checkpoint
    options: QuantizeOptions
    calibration: CalibrationOptions
    target: Target | None

    @property
    def purpose(self) -> dict[str, Any]:
        wanted = None if self.target is None else asdict(self.target)
        return {**self.calibration.purpose(), "target": wanted}

    def make(self) -> Prepared:
        windows = calibration_windows(self.checkpoint, self.calibration, self.options.threads)
        if self.target is None:
            return Prepared(windows)
        return Prepared(windows, self._choose(self.target, windows))

    def _choose(self, target: Target, windows: list[list[int]]) -> Mapping[str, str]:
        from ..convert.allocating import choose_bits

        with progress("measure", sum(map(len, windows)), "tokens") as advance:
            chosen = choose_bits(self.checkpoint, self.options, target, windows, advance)
        counts = Counter(chosen.labels.values())
        kinds = ", ".join(f"{count} as {label}" for label, count in sorted(counts.items()))
        say(f"matrices: {kinds}; estimated KL {chosen.estimated_kl:.3g} nats per token")
        return chosen.labels


def _show_matrix(matrix: MatrixReport) -> None:
    """One row of the live table."""
    say(
        f"{matrix.module:<44} {matrix.sqnr:6.2f} dB (rounded {matrix.sqnr_rounded:6.2f}) "
        f"damping {matrix.damping:g}  {matrix.seconds:6.1f} s"
    )


@dataclass(frozen=True)
class ExportReport:
    result: ExportResult
    output: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "bytes_written": self.result.bytes_written,
            "bytes_linked": self.result.bytes_linked,
            "files": list(self.result.files),
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def show(self) -> None:
        r = self.result
        say(
            f"{self.output}: {size_text(r.bytes_written)} written, {size_text(r.bytes_linked)} "
            f"linked to the checkpoint's own files, {self.seconds:.1f} s"
        )


def export_command(
    model: str, options: ExportOptions, output: Path, overwrite: bool
) -> ExportReport:
    _check_output(model, output, overwrite)
    start = time.perf_counter()
    checkpoint = open_checkpoint(model)
    with progress("export", checkpoint.parameter_count, "weights") as advance:
        result = export_onnx(checkpoint, options, output, overwrite, advance)
    return ExportReport(result, output, time.perf_counter() - start)


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
    _check_output(model, output, overwrite)
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
    _check_output(model, output, overwrite, is_single_file(output))
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
    _check_output(model, output, overwrite, single_file=True)
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


def run_command(
    loaded: Loaded,
    prompt: str,
    system: str | None,
    raw: bool,
    max_tokens: int,
    overrides: Overrides,
    stream: bool,
    speculate: int = 0,
) -> Answer:
    """Generate; with `stream`, thoughts go to stderr and the answer to stdout as they come."""
    defaults = from_generation_config(generation_config(loaded.side_files))
    sampling = defaults.with_overrides(*overrides)

    def emit(kind: Kind, text: str) -> None:
        file = sys.stderr if kind == "think" else sys.stdout
        dim = kind == "think" and file.isatty()
        print(f"\x1b[2m{text}\x1b[0m" if dim else text, end="", file=file, flush=True)

    show = emit if stream else lambda kind, text: None
    reply = answer(loaded, prompt, sampling, max_tokens, system, raw, show, speculate)
    if stream:
        g, guesses = reply.generation, reply.speculation
        guessed = f", {guesses.accepted} of {guesses.proposed} guesses right" if guesses else ""
        print()
        say(
            f"\n{len(g.tokens)} tokens ({g.stop_reason}), prefill "
            f"{g.prefill_tokens_per_second:.0f} tokens/s, decode "
            f"{g.decode_tokens_per_second:.1f} tokens/s, {loaded.runtime} on "
            f"{loaded.provider}{guessed}"
        )
    return reply


@dataclass(frozen=True)
class VerifyReport:
    verdict: Verdict
    artifact: str
    reference: str

    hint = "calibrate, use smaller groups or more bits (--head-bits 8, --bits 8)"

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        s, o = self.verdict.summary, self.verdict.options
        noise = self.verdict.noise_kl
        table = Table(title=f"{self.artifact} against {self.reference}", title_justify="left")
        for column in ("figure", "value", "threshold"):
            table.add_column(column, justify="left" if column == "figure" else "right")
        kl_limit = "" if o.max_kl is None else f"≤ {o.max_kl:g}"
        top1_limit = "" if o.min_top1 is None else f"≥ {o.min_top1:g}"
        table.add_row("mean KL, nats per token", f"{s.kl_mean:.5f} ± {s.kl_stderr:.5f}", kl_limit)
        table.add_row("median, p99, max", f"{s.kl_median:.5f}, {s.kl_p99:.4f}, {s.kl_max:.3f}")
        if noise is not None:
            table.add_row("noise floor (bfloat16 against float32)", f"{noise:.5f}")
        table.add_row("top-1 agreement", f"{s.top1_agreement:.4f}", top1_limit)
        table.add_row("perplexity of the reference", f"{s.reference_perplexity:.4f}")
        ratio = s.artifact_perplexity / s.reference_perplexity
        table.add_row("perplexity of the artifact", f"{s.artifact_perplexity:.4f} (× {ratio:.4f})")
        table.add_row("tokens", str(s.tokens))
        table.add_row("runtime", f"{self.verdict.runtime} on {self.verdict.provider}")
        Console().print(table)
        print("verdict: passed" if self.verdict.passed else "verdict: failed")


def verify_command(
    artifact: str,
    reference: str,
    text: Path | None,
    options: VerifyOptions,
    provider: str,
    dtype: str,
    threads: int,
    kv: str,
) -> VerifyReport:
    content = read_text(text)
    tested = load(artifact, provider, threads, kv=kv)
    judge = load(reference, "cpu", threads, dtype)
    total = sum(map(len, plan_windows(tested, judge, content, options)))
    with progress("verify", total, "tokens") as advance:
        verdict = verify_sessions(tested, judge, content, options, advance)
    return VerifyReport(verdict, artifact, reference)


def show_description(description: Description) -> None:
    from rich.console import Console
    from rich.table import Table

    d = description
    table = Table(
        title=f"{d.kind}, family {d.family}: {d.parameters:,} parameters, "
        f"{d.bits_per_weight:.2f} bits per weight, {size_text(d.size_bytes)}",
        title_justify="left",
    )
    for column, justify in (("tensor", "left"), ("shape", "right"), ("stored", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    for row in d.tensors:
        shape = " × ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.storage, f"{row.size_bytes:,}")
    Console().print(table)


def demo_command(keep: Path | None, threads: int) -> DemoResult:
    return run_demo(progress, say, keep, threads)


def show_demo(result: DemoResult) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"SmolLM2-135M-Instruct, {result.seconds:.0f} s in all"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("size", "bits", "KL", "top-1", "ppl", "tokens/s", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        verdict = row.verdict
        summary = verdict.summary if verdict else None
        table.add_row(
            row.name,
            size_text(row.size_bytes),
            f"{row.bits_per_weight:.2f}",
            f"{summary.kl_mean:.4f}" if summary else "",
            f"{summary.top1_agreement:.3f}" if summary else "",
            f"{row.perplexity:.2f}",
            f"{row.decode_tokens_per_second:.0f}",
            ("passed" if verdict.passed else "failed") if verdict else "",
        )
    Console().print(table)
