"""What `verify` looks at beside the figures: files, weights, free texts, tasks, speed.

A check runs on a comparison and gives its part of the verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dsconv.runtime.console import progress
from dsconv.runtime.generate.timed import SessionRunner
from dsconv.runtime.sessions.session import Session

from .comparison import Comparison
from .findings.integrity import BESIDE, integrity_findings
from .findings.signature import Signature, signature_findings
from .findings.tokenizer import tokenizer_findings
from .free_running import built_in_prompts, compare_texts, write_texts
from .tasks.ask import TaskOptions
from .tasks.run import questions_of, run_task
from .verdict import Speed, Verdict, VerdictPart
from .weights import WeightsCheck

FREE_TOKENS = 256  # of a free text
SPEED_CONTEXT, SPEED_TOKENS, SPEED_ROUNDS = 64, 16, 3


class Check(Protocol):
    def run(self, comparison: Comparison) -> VerdictPart:
        """
        Raises:
            InputError, UnsupportedError: what was asked for cannot be looked at.
        """
        ...


@dataclass(frozen=True)
class WantedChecks:
    """What to look at.

    layers: compare weights layer by layer; None: where the artifact can be read, and say so where
    it cannot. integrity: recompute every hash; else those of artifacts that have all of them, once
    while nothing changes. shots_from: file of worked examples for the tasks. free_running: number
    of prompts. speed: time both models.
    """

    layers: bool | None = None
    integrity: bool = False
    free_running: int = 0
    tasks: tuple[Path, ...] = ()
    shots_from: Path | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)
    speed: bool = False
    signature: Signature | None = None


def checks_of(wanted: WantedChecks, measured: Verdict, cache: Path | None) -> Iterator[Check]:
    """In the order in which they run and their findings are listed.

    Args:
        cache: folder that keeps what was seen of weights; None keeps nothing.
    """
    yield TokenizerCheck()
    if wanted.signature:
        yield SignatureCheck(wanted.signature)
    if wanted.integrity:
        yield IntegrityCheck()
    yield WeightsCheck(wanted.layers, wanted.integrity, measured.circumstances, cache)
    if wanted.free_running:
        yield FreeTextsCheck(wanted.free_running)
    for task in wanted.tasks:
        yield TaskCheck(task, wanted.task_options, wanted.shots_from)
    if wanted.speed:
        yield SpeedCheck(measured.summary.kl_mean)


def with_checks(measured: Verdict, checks: Iterable[Check], comparison: Comparison) -> Verdict:
    """The verdict with the part of every check."""
    parts = [check.run(comparison) for check in checks]
    return replace(
        measured,
        findings=(*measured.findings, *(found for part in parts for found in part.findings)),
        layers=tuple(layer for part in parts for layer in part.layers),
        free_running=next((part.free_running for part in parts if part.free_running), None),
        tasks=tuple(score for part in parts for score in part.tasks),
        speeds=tuple(speed for part in parts for speed in part.speeds),
    )


class TokenizerCheck:
    def run(self, comparison: Comparison) -> VerdictPart:
        artifact, reference = comparison.artifact, comparison.reference
        findings = tokenizer_findings(
            artifact.side_files,
            reference.side_files,
            artifact.config,
            reference.config,
            rebuilt=comparison.place.suffix == ".gguf",
        )
        return VerdictPart(tuple(findings))


@dataclass(frozen=True)
class SignatureCheck:
    signature: Signature

    def run(self, comparison: Comparison) -> VerdictPart:
        return VerdictPart(signature_findings(comparison.place, self.signature))


class IntegrityCheck:
    def run(self, comparison: Comparison) -> VerdictPart:
        return VerdictPart(integrity_findings(comparison.place, BESIDE))


@dataclass(frozen=True)
class FreeTextsCheck:
    prompts: int

    def run(self, comparison: Comparison) -> VerdictPart:
        models = comparison.artifact, comparison.running_reference
        prompts = built_in_prompts(self.prompts)
        with progress("texts", 2 * len(prompts), "texts") as advance:
            mine, theirs = (
                write_texts(model, comparison.tokenizer, prompts, FREE_TOKENS, advance)
                for model in models
            )
        return VerdictPart(free_running=compare_texts(mine, theirs, FREE_TOKENS))


@dataclass(frozen=True)
class TaskCheck:
    file: Path
    options: TaskOptions
    shots_from: Path | None = None

    def run(self, comparison: Comparison) -> VerdictPart:
        artifact, reference = comparison.artifact, comparison.running_reference
        options = replace(self.options, draft=comparison.draft)
        questions, _ = questions_of(self.file, options, self.shots_from)
        total = 2 * sum(len(q.choice.texts) if q.choice else options.seeds for q in questions)
        with progress(self.file.name, total, "answers") as advance:
            score = run_task(self.file, artifact, reference, options, advance, self.shots_from)
        return VerdictPart(tasks=(score,))


@dataclass(frozen=True)
class SpeedCheck:
    """kl_mean: of the artifact, to show beside its speed."""

    kl_mean: float

    def run(self, comparison: Comparison) -> VerdictPart:
        reference = comparison.running_reference.session
        return VerdictPart(
            speeds=(
                _speed(comparison.path, comparison.artifact.session, self.kl_mean),
                _speed(comparison.reference.name, reference, None),
            )
        )


def _speed(name: str, session: Session, kl_mean: float | None) -> Speed:
    """Medians of a few short rounds: enough to tell twice as fast, not two per cent."""
    runner = SessionRunner(session)
    context = [index % min(session.vocabulary, 97) for index in range(SPEED_CONTEXT)]
    prefill = [runner.prefill(context) for _ in range(SPEED_ROUNDS)]
    decode = [runner.decode(context, SPEED_TOKENS) for _ in range(SPEED_ROUNDS)]
    path = Path(name).expanduser()
    files = [path] if path.is_file() else [*path.rglob("*")] if path.is_dir() else []
    return Speed(
        name,
        sum(file.stat().st_size for file in files if file.is_file()),
        kl_mean,
        SPEED_CONTEXT / statistics.median(prefill),
        SPEED_TOKENS / statistics.median(decode),
        None,
    )
