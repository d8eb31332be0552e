"""`dsconv quantize` between parsing and printing: text, bits per matrix, the run, its report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST, partial_of
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.config_only import open_for_planning
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import Preparation, Prepared, refuse_tokens_beyond
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.options import (
    CALIBRATED,
    FLOAT_ACTIVATIONS,
    BitsTarget,
    QuantizeOptions,
)
from dsconv.convert.quantize.plan import read_allocation
from dsconv.convert.quantize.run import NO_TEXT, QuantizeResult, quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.convert.quantize.target_range import refuse_impossible
from dsconv.errors import UsageError
from dsconv.runtime.calibration.text_windows import CalibrationOptions, calibration_windows

from .console import count_text, detail, progress, rate_text, say, size_text
from .memory import peak_rss_bytes
from .model_paths import check_output, open_model, streamed_model
from .plan import refuse_what_cannot_fit
from .quantize_request import QuantizeRequest

LARGE_SHARE = 0.25  # of all bytes, from which an embedding in float is worth a word


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

    def words(self) -> str:
        """A line for people; before it, which matrices lost much."""
        r = self.result
        warning = loss = ""
        if r.doubtful:
            warning = (
                f"warning: {len(r.doubtful)} matrices lost much, {r.doubtful[0]} first: see "
                f"facts.matrices in {self.output / MANIFEST}\n"
            )
        if r.calibration_kl is not None:
            loss = f", KL {r.calibration_kl:.3g} while calibrating"
        return (
            f"{warning}{self.output}: {count_text(r.parameters)} parameters, "
            f"{r.bits_per_weight:.2f} bits per weight, {size_text(r.weight_bytes)}, "
            f"{self.seconds:.1f} s ({rate_text(r.source_bytes / max(self.seconds, 1e-9), 'B')}), "
            f"peak memory {size_text(peak_rss_bytes())}{loss}{self._of_the_embedding()}"
        )

    def _of_the_embedding(self) -> str:
        """Why a small model ends at more bits than were asked for."""
        made = open_checkpoint(str(self.output))
        table = f"{made.decoder.table.name}.weight"
        if made.scheme(table) is not None:
            return ""
        size = made.source.nbytes(table)
        if size < LARGE_SHARE * self.result.weight_bytes:
            return ""
        return (
            f"\nnote: {size_text(size)} of it are the embedding, which stays in float: "
            "--embedding-bits 8 makes it smaller"
        )


def quantize_model(
    model: str,
    request: QuantizeRequest,
    output: Path,
    threads: int,
    overwrite: bool = False,
    keep: bool = True,
) -> QuantizeReport:
    """Quantize, calibrated where that was asked for or is the default and the model can write.

    Args:
        keep: what is downloaded; else shards are fetched when they are needed, and deleted.
    """
    texts, target = request.texts(), request.target()
    options = request.resolve(threads, True, False)
    if target is not None and request.manifest() is not None:
        raise UsageError("a target and a recipe", "use one of the two")
    if target is not None and options.activations != FLOAT_ACTIVATIONS:
        raise UsageError(
            "a target with int8 activations", "leave out --target-bpw, --target-size and --max-kl"
        )
    if texts.sources and options.method != CALIBRATED and target is None:
        raise UsageError(
            f"method {options.method!r} takes no calibration text",
            f"add --method {CALIBRATED}, or leave out --calibration",
        )
    check_output(model, output, overwrite)
    start = time.perf_counter()
    if target is not None:  # before weights are fetched
        planned = open_for_planning(model)
        tied = planned.decoder.config.tie_word_embeddings
        refuse_impossible(planned, request.resolve(threads, True, tied), target)
    opened = nullcontext(open_model(model)) if keep else streamed_model(model, output)
    with opened as checkpoint:
        _warn_of_rounding(checkpoint)
        options = _decided(checkpoint, request, threads)
        result = _quantize(TextAndBits(checkpoint, options, texts, target), output, overwrite)
    return QuantizeReport(result, output, time.perf_counter() - start)


def _warn_of_rounding(checkpoint: Checkpoint) -> None:
    kinds = checkpoint.rounded_before
    if kinds:
        more = f" and {len(kinds) - 1} more kinds" if len(kinds) > 1 else ""
        say(
            f"warning: {checkpoint.origin} was quantized before ({kinds[0]}{more}): errors add up; "
            "the unquantized model gives a better result, and is what to verify against"
        )


def _decided(checkpoint: Checkpoint, request: QuantizeRequest, threads: int) -> QuantizeOptions:
    """The checkpoint decides what the request left open."""
    tied = checkpoint.decoder.config.tie_word_embeddings
    options = request.resolve(threads, True, tied)
    without_text = request.resolve(threads, False, tied)
    if options.method == CALIBRATED and without_text.method != CALIBRATED:  # nobody asked for it
        from dsconv.runtime.calibration.self_written import why_it_cannot_write  # torch

        reason = why_it_cannot_write(checkpoint)
        if reason is not None:
            say(f"warning: no calibration text, so weights are rounded by search: {reason}")
            options = without_text
    manifest = request.manifest()
    if manifest is None:
        return options
    return replace(options, allocation=read_allocation(manifest))


def _quantize(work: TextAndBits, output: Path, overwrite: bool) -> QuantizeResult:
    checkpoint, options = work.checkpoint, work.options
    refuse_what_cannot_fit(checkpoint, options, output, work.calibration, work.target)
    is_needed = options.method == CALIBRATED or work.target is not None
    preparation: Preparation = work if is_needed else NO_TEXT
    try:
        with progress("quantize", checkpoint.parameter_count, "weights") as advance:
            listeners = Listeners(advance, MatrixTable().show, say)
            return quantize_checkpoint(
                checkpoint, options, output, overwrite, preparation, listeners
            )
    except (KeyboardInterrupt, SystemExit):
        say(f"interrupted; the same command resumes from {partial_of(output)}")
        raise


@dataclass(frozen=True)
class TextAndBits:
    """The calibration text and, with a target, the bits per matrix (a `Preparation`)."""

    checkpoint: Checkpoint
    options: QuantizeOptions
    calibration: CalibrationOptions
    target: BitsTarget | None

    @property
    def purpose(self) -> dict[str, Any]:
        wanted = None if self.target is None else asdict(self.target)
        return {**self.calibration.purpose(), "target": wanted}

    def make(self) -> Prepared:
        windows = calibration_windows(self.checkpoint, self.calibration, self.options.threads)
        refuse_tokens_beyond(windows, self.checkpoint.decoder.config.vocab_size)
        if self.target is None:
            return Prepared(windows)
        return Prepared(windows, self._choose(self.target, windows))

    def _choose(self, target: BitsTarget, windows: list[list[int]]) -> Mapping[str, str]:
        from dsconv.convert.quantize.choose_bits import choose_bits  # torch

        with progress("measure", sum(map(len, windows)), "tokens") as advance:
            chosen = choose_bits(self.checkpoint, self.options, target, windows, advance)
        counts = Counter(chosen.labels.values())
        kinds = ", ".join(f"{count} as {label}" for label, count in sorted(counts.items()))
        say(f"matrices: {kinds}; estimated KL {chosen.estimated_kl:.3g} nats per token")
        return chosen.labels


class MatrixTable:
    """With --verbose a line for every calibrated matrix, as it is done."""

    def __init__(self) -> None:
        self._has_head = False

    def show(self, matrix: MatrixReport) -> None:
        if not self._has_head:
            self._has_head = True
            detail(
                "signal over noise of what each matrix puts out on the calibration text, more is "
                f"better\n{'matrix':<44} {'calibrated':>11} {'rounded':>11} {'damping':>8} "
                f"{'time':>8}"
            )
        detail(
            f"{matrix.module:<44} {matrix.sqnr:8.2f} dB {matrix.sqnr_rounded:8.2f} dB "
            f"{matrix.damping:>8g} {matrix.seconds:6.1f} s"
        )
