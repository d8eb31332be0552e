"""The whole pipeline on a small real model, offline: import, quantize, export, answer, verify."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.inspect import describe
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.progress import Progress
from dsconv.runtime.generate.answer import Answer, UserPrompt, Wanted, answer
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.verify.judge import failures
from dsconv.runtime.verify.run import VerifyRequest, run_verify
from dsconv.runtime.verify.thresholds import from_options
from dsconv.runtime.verify.verdict import Verdict
from dsconv.runtime.verify.verdict_json import to_json

from .model import find_model

QUESTION = "What is the capital of France? Answer in one sentence."
MAX_TOKENS = 48
# Mean KL allowed per width. A model of 135M parameters loses much more from 4 bits without
# calibration than a large one.
MAX_KL = {4: 0.5, 8: 0.02}


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    name: str
    size_bytes: int
    bits_per_weight: float
    perplexity: float
    decode_tokens_per_second: float
    verdict: Verdict | None = None


@dataclass(frozen=True)
class DemoResult:
    rows: tuple[Row, ...]
    answer: str
    seconds: float

    @property
    def verdicts(self) -> list[Verdict]:
        return [row.verdict for row in self.rows if row.verdict is not None]

    @property
    def failures(self) -> list[str]:
        return [failure for verdict in self.verdicts for failure in failures(verdict)]

    def to_json(self) -> dict[str, Any]:
        return {
            "question": QUESTION,
            "answer": self.answer,
            "passed": not self.failures,
            "models": [
                {
                    **{key: value for key, value in vars(row).items() if key != "verdict"},
                    "verify": to_json(row.verdict) if row.verdict else None,
                }
                for row in self.rows
            ],
            "seconds": self.seconds,
        }


def run_demo(
    progress: Progress, emit: Callable[[str], None], keep: Path | None, threads: int
) -> DemoResult:
    """Run every step for int4 and int8, showing the command that would do it.

    Args:
        progress: opens a bar for a title, a total and a unit.
        keep: folder that receives the artifacts; None throws them away.
    """
    start = time.perf_counter()
    model = find_model()
    with tempfile.TemporaryDirectory(prefix="dsconv-demo-") as scratch:
        steps = _Steps(model, keep or Path(scratch), Path(scratch), progress, emit, threads)
        replies, rows = [], []
        for bits in MAX_KL:
            steps.convert(bits)
            reply, row = steps.judge(bits)
            replies.append(reply)
            rows.append(row)
    slow = _ask(load(str(model), threads=threads))
    parameters = describe(str(model)).parameters
    original = Row(
        "original, in torch",
        4 * parameters,
        32.0,
        rows[0].verdict.summary.reference_perplexity if rows[0].verdict else 0.0,
        slow.generation.decode_tokens_per_second,
    )
    return DemoResult((original, *rows), replies[0].text, time.perf_counter() - start)


@dataclass(frozen=True)
class _Steps:
    model: Path
    folder: Path
    cache: Path  # of the reference's predictions, which both verdicts need
    progress: Progress
    emit: Callable[[str], None]
    threads: int

    def convert(self, bits: int) -> None:
        """GGUF -> quantized checkpoint -> ONNX folder."""
        quantized, exported = f"int{bits}", f"int{bits}-onnx"
        self.emit(
            f"$ dsconv quantize {self.model.name} --bits {bits} --embedding-bits 8 -o {quantized}"
        )
        checkpoint = open_checkpoint(str(self.model))
        options = QuantizeOptions(bits=bits, embedding_bits=8, threads=self.threads)
        with self.progress("quantize", checkpoint.parameter_count, "weights") as advance:
            quantize_checkpoint(
                checkpoint, options, self.folder / quantized, True, listeners=Listeners(advance)
            )
        self.emit(f"$ dsconv export {quantized} --format onnx --target cpu -o {exported}")
        smaller = open_checkpoint(str(self.folder / quantized))
        result = export_onnx(smaller, ExportOptions(), self.folder / exported, True)
        self.emit(f"  {result.bytes_written:,} bytes written, {result.bytes_linked:,} linked")

    def judge(self, bits: int) -> tuple[Answer, Row]:
        """Ask the artifact a question and compare it with the original."""
        exported = f"int{bits}-onnx"
        self.emit(f'$ dsconv run {exported} -p "{QUESTION}"')
        reply = _ask(load(str(self.folder / exported), threads=self.threads))
        self.emit(f"  {reply.text}")
        self.emit(
            f"$ dsconv verify {exported} --reference {self.model.name} --max-kl {MAX_KL[bits]}"
        )
        request = VerifyRequest(
            str(self.folder / exported),
            str(self.model),
            thresholds=from_options({"max_kl": MAX_KL[bits]}),
            cache=self.cache,
            threads=self.threads,
        )
        verdict = run_verify(request)
        description = describe(str(self.folder / exported))
        row = Row(
            f"int{bits}, in ONNX",
            description.size_bytes,
            description.bits_per_weight,
            verdict.summary.artifact_perplexity,
            reply.generation.decode_tokens_per_second,
            verdict,
        )
        return reply, row


def _ask(loaded: Loaded) -> Answer:
    loaded.session.reset()
    return answer(loaded, UserPrompt(QUESTION), Wanted(max_tokens=MAX_TOKENS))
