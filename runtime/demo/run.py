"""The whole pipeline on a small real model, offline: import, quantize, export, answer, verify.

Every step is shown as the command that does the same, to the byte (a test runs them).
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dsconv.convert.inspect.describe import describe
from dsconv.runtime.export import ExportRequest, export_model
from dsconv.runtime.generate.answer import Answer, UserPrompt, Wanted, answer
from dsconv.runtime.quantize import quantize_model
from dsconv.runtime.quantize_request import QuantizeRequest
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.verify.judge import failures
from dsconv.runtime.verify.run import VerifyRequest, run_verify
from dsconv.runtime.verify.verdict import Verdict
from dsconv.runtime.verify.verdict_json import to_json

from .model import find_model

QUESTION = "What is the capital of France? Answer in one sentence."
MAX_TOKENS = 48
TEXTS = "calibration_texts.jsonl"


@dataclass(frozen=True)
class Recipe:
    """A way to quantize; `options` are those of `request` on the command line."""

    name: str
    title: str
    options: tuple[str, ...]
    request: QuantizeRequest


def recipes() -> tuple[Recipe, ...]:
    """int4 calibrated, with 8 bits where 4 would cost most; int8 by itself.

    A model of 135M parameters loses more from 4 bits than a large one. Symmetric groups on purpose:
    the weights of this model lie on an asymmetric grid of 4 bits, on which rounding would cost
    nothing and say nothing (README). Calibrated on the texts that come with dsconv: having the
    model write more, which is the default, would take a minute.
    """
    texts = str(resources.files("dsconv.runtime.calibration").joinpath(TEXTS))
    return (
        Recipe(
            "int4",
            "int4+int8, ONNX",
            ("--target-bpw", "6", "--calibration", texts, "--calibration-tokens", "4096"),
            QuantizeRequest(target_bpw=6.0, calibration=(texts,), calibration_tokens=4096),
        ),
        Recipe(
            "int8",
            "int8, ONNX",
            ("--bits", "8", "--embedding-bits", "8"),
            QuantizeRequest(bits=8, embedding_bits=8),
        ),
    )


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


def run_demo(emit: Callable[[str], None], keep: Path | None, threads: int) -> DemoResult:
    """Run every step for int4 and int8, showing the command that would do it.

    Args:
        keep: folder that receives the artifacts; None throws them away.
    """
    start = time.perf_counter()
    model = find_model()
    with tempfile.TemporaryDirectory(prefix="dsconv-demo-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        steps = _Steps(model, folder, keep, Path(scratch), emit, threads)
        replies, rows = [], []
        for recipe in recipes():
            steps.convert(recipe)
            reply, row = steps.judge(recipe)
            replies.append(reply)
            rows.append(row)
    slow = _ask(load(str(model), threads=threads))
    parameters = describe(str(model)).parameters
    original = Row(
        "original, torch",
        4 * parameters,
        32.0,
        rows[0].verdict.summary.reference_perplexity if rows[0].verdict else 0.0,
        slow.generation.decode_tokens_per_second,
    )
    return DemoResult((original, *rows), replies[0].text, time.perf_counter() - start)


@dataclass(frozen=True)
class _Steps:
    """cache: of the reference's predictions, which both verdicts need."""

    model: Path
    folder: Path
    shown: Path | None  # the folder in the commands; None: whoever repeats them chooses one
    cache: Path
    emit: Callable[[str], None]
    threads: int

    def convert(self, recipe: Recipe) -> None:
        """GGUF -> quantized checkpoint -> ONNX folder."""
        quantized, exported = recipe.name, f"{recipe.name}-onnx"
        self._show("quantize", self.model, *recipe.options, "-o", self._place(quantized))
        made = quantize_model(
            str(self.model), recipe.request, self.folder / quantized, self.threads, overwrite=True
        )
        self.emit(f"  {made.result.bits_per_weight:.2f} bits per weight, {made.seconds:.1f} s")
        self._show(
            *("export", self._place(quantized), "--format", "onnx", "--target", "cpu"),
            *("-o", self._place(exported)),
        )
        request = ExportRequest("onnx", "cpu")
        result = export_model(
            str(self.folder / quantized), request, self.folder / exported, overwrite=True
        )
        self.emit(f"  {result.bytes_written:,} bytes written, {result.bytes_linked or 0:,} linked")

    def judge(self, recipe: Recipe) -> tuple[Answer, Row]:
        """Ask the artifact a question and compare it with the original."""
        exported = f"{recipe.name}-onnx"
        place = str(self.folder / exported)
        self._show("run", self._place(exported), "-p", QUESTION)
        reply = _ask(load(place, threads=self.threads))
        self.emit(f"  {reply.text}")
        self._show("verify", self._place(exported), "--reference", self.model)
        verdict = run_verify(
            VerifyRequest(place, str(self.model), cache=self.cache, threads=self.threads)
        )
        description = describe(place)
        row = Row(
            recipe.title,
            description.size_bytes,
            description.bits_per_weight,
            verdict.summary.artifact_perplexity,
            reply.generation.decode_tokens_per_second,
            verdict,
        )
        return reply, row

    def _show(self, *words: str | Path) -> None:
        """A command that a shell takes as it is."""
        self.emit(f"$ {shlex.join(['dsconv', *map(str, words)])}")

    def _place(self, name: str) -> Path:
        return Path(name) if self.shown is None else self.shown / name


def _ask(loaded: Loaded) -> Answer:
    loaded.session.reset()
    return answer(loaded, UserPrompt(QUESTION), Wanted(max_tokens=MAX_TOKENS))
