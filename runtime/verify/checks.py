"""What `verify` looks at beside the figures: weights, files, free texts, tasks, speed."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.atomic import output_file
from dsconv.errors import DsconvError, OutputError, ProviderError, UnsupportedError
from dsconv.runtime.console import progress, say
from dsconv.runtime.generate.timed import SessionRunner
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.sessions.torch_device import import_torch
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.verify.findings.integrity import BESIDE, can_be_vouched_for, integrity_findings
from dsconv.runtime.verify.findings.signature import Signature, signature_findings
from dsconv.runtime.verify.findings.tokenizer import tokenizer_findings

from .free_running import built_in_prompts, compare_texts, write_texts
from .reference import CheckpointReference, Reference, Tokens
from .task import TaskOptions, run_task
from .verdict import Finding, LayerError, Speed, Verdict

LAYER_TOKENS = 512  # of the text; what a layer does to them shows what its weights are worth
FREE_TOKENS = 256  # of a free text
SPEED_CONTEXT, SPEED_TOKENS, SPEED_ROUNDS = 64, 16, 3


@dataclass(frozen=True)
class Inspections:
    """What to look at.

    layers: compare weights layer by layer; None: where the artifact can be read, and say so where
    it cannot. integrity: recompute every hash; else those of artifacts that have all of them, once
    while nothing changes. free_running: number of prompts. speed: time both models.
    """

    layers: bool | None = None
    integrity: bool = False
    free_running: int = 0
    task: Path | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)
    speed: bool = False
    signature: Signature | None = None


@dataclass(frozen=True)
class Subject:
    """An artifact and the model it was made from; `dtype`, `threads`: how the latter is run."""

    path: str
    artifact: Loaded
    reference: Reference
    dtype: str
    threads: int

    def run_reference(self) -> Loaded:
        return load(self.reference.name, "cpu", self.threads, self.dtype)


def inspect_all(
    verdict: Verdict, subject: Subject, wanted: Inspections, windows: Tokens, cache: Path | None
) -> Verdict:
    """The verdict with everything that was asked for.

    Args:
        cache: folder that keeps what was seen of weights; None keeps nothing.

    Raises:
        InputError, UnsupportedError: something that was asked for cannot be looked at.
    """
    reference, artifact = subject.reference, subject.artifact
    findings = [
        *verdict.findings,
        *tokenizer_findings(
            artifact.side_files,
            reference.side_files,
            artifact.config,
            reference.config,
            rebuilt=Path(subject.path).suffix == ".gguf",
        ),
    ]
    path = Path(subject.path).expanduser()
    if wanted.signature:
        findings += signature_findings(path, wanted.signature)
    if wanted.integrity:
        findings += integrity_findings(path, BESIDE)
    layers, of_weights = _weights(verdict, subject, wanted, windows, cache)
    verdict = replace(verdict, findings=(*findings, *of_weights), layers=layers)
    if wanted.free_running or wanted.task or wanted.speed:
        verdict = _run_freely(verdict, subject, wanted)
    return verdict


Layers = tuple[tuple[LayerError, ...], tuple[Finding, ...]]


def _weights(
    verdict: Verdict, subject: Subject, wanted: Inspections, windows: Tokens, cache: Path | None
) -> Layers:
    """What the bytes of artifact and reference decide alone, so that it can be kept."""
    sample = _sample(windows)
    key = _key(verdict, sample, wanted)
    path = cache / "weights" / f"{key}.json" if cache else None
    known = _read(path) if path else None
    if known is not None:
        return known
    place = Path(subject.path).expanduser()
    damaged: tuple[Finding, ...] = ()
    if not wanted.integrity and can_be_vouched_for(place):
        damaged = integrity_findings(place, BESIDE)
    try:
        layers, findings = _layers(subject, wanted.layers, sample)
    except ProviderError as error:  # of this environment, not of the weights: not kept
        if wanted.layers:
            raise
        say(f"layers are not compared: {error.message}")
        return (), damaged
    found = layers, (*damaged, *findings)
    if path:
        _write(path, found)
    return found


def _layers(subject: Subject, wanted: bool | None, windows: Tokens) -> Layers:
    """wanted: None stands for: where it is possible.

    Raises:
        ProviderError: there is no torch to compare with.
    """
    if wanted is False:
        return (), ()
    if not isinstance(subject.reference, CheckpointReference):
        if wanted:
            raise UnsupportedError(
                f"{subject.reference.name}: layers cannot be compared with an exported artifact",
                "give the checkpoint that it was made from as --reference",
            )
        return (), ()
    try:
        return _view(subject, windows)
    except DsconvError as error:
        if wanted or isinstance(error, ProviderError):
            raise
        say(f"layers are not compared: {error.message}")
        return (), ()


def _view(subject: Subject, windows: Tokens) -> Layers:
    import_torch()
    from dsconv.runtime.verify.findings.layers import view_layers

    assert isinstance(subject.reference, CheckpointReference)
    checkpoint = subject.reference.checkpoint
    with progress("layers", checkpoint.decoder.config.num_hidden_layers + 2, "layers") as advance:
        view = view_layers(subject.path, checkpoint, windows, advance)
    return view.layers, view.findings


def _sample(windows: Tokens) -> list[Sequence[int]]:
    """The first LAYER_TOKENS of the text."""
    found: list[Sequence[int]] = []
    left = LAYER_TOKENS
    for window in windows:
        if left < 2:
            break
        found.append(window[:left])
        left -= len(found[-1])
    return found


def _key(verdict: Verdict, windows: Tokens, wanted: Inspections) -> str:
    """Of all that decides over what is seen: files, tokens, and how dsconv looks at them."""
    p = verdict.provenance
    content = [
        __version__,
        wanted.layers,
        wanted.integrity,
        p.artifact,
        sorted(p.artifact_files.items()),
        p.reference_hash,
        [list(window) for window in windows],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read(path: Path) -> Layers | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return (
            tuple(LayerError(**entry) for entry in content["layers"]),
            tuple(Finding(**entry) for entry in content["findings"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, found: Layers) -> None:
    """A folder that cannot be written is a pity, not an error."""
    layers, findings = found
    content: Mapping[str, Any] = {
        "layers": [{**asdict(layer), "matrices": dict(layer.matrices)} for layer in layers],
        "findings": [asdict(finding) for finding in findings],
    }
    try:
        with output_file(path, overwrite=True) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
    except (OutputError, OSError) as error:
        say(f"what was seen of the layers is not kept: {error}")


def _run_freely(verdict: Verdict, subject: Subject, wanted: Inspections) -> Verdict:
    """What needs the reference as a whole in memory."""
    artifact, reference = subject.artifact, subject.run_reference()
    if wanted.free_running:
        prompts = built_in_prompts(wanted.free_running)
        tokenizer = TextTokenizer(
            reference.side_files or artifact.side_files, subject.reference.config
        )
        with progress("texts", 2 * len(prompts), "texts") as advance:
            mine, theirs = (
                write_texts(model, tokenizer, prompts, FREE_TOKENS, advance)
                for model in (artifact, reference)
            )
        verdict = replace(verdict, free_running=compare_texts(mine, theirs, FREE_TOKENS))
    if wanted.task:
        options = wanted.task_options
        total = 2 * options.questions * options.seeds
        with progress("task", total, "answers") as advance:
            score = run_task(wanted.task, artifact, reference, options, advance)
        verdict = replace(verdict, tasks=(score,))
    if wanted.speed:
        speeds = (
            _speed(subject.path, artifact.session, verdict.summary.kl_mean),
            _speed(subject.reference.name, reference.session, None),
        )
        verdict = replace(verdict, speeds=speeds)
    return verdict


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
