"""From a file of prompts to a file of answers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsconv.convert.files.hashes import FileHashes, artifact_files
from dsconv.progress import Advance
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.console import rate_text, say

from .answer import Asking, answer_rows
from .output import answers_file
from .rows import PromptRow, prompt_rows


@dataclass(frozen=True)
class PromptsReport:
    """resumed: answers that an earlier run had written."""

    output: Path | None
    prompts: int
    skipped: int
    resumed: int
    generated_tokens: int
    seconds: float
    parallel: int

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "output": None if self.output is None else str(self.output),
            "prompts": self.prompts,
            "skipped": self.skipped,
            "resumed": self.resumed,
            "generated_tokens": self.generated_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "parallel": self.parallel,
        }

    def show(self) -> str:
        rate = rate_text(self.tokens_per_second, "tokens")
        again = f", {self.resumed} of them from before" if self.resumed else ""
        skipped = f", {self.skipped} rows without an answer" if self.skipped else ""
        return (
            f"{self.prompts - self.skipped} answers{again}{skipped}, {self.generated_tokens} "
            f"tokens, {rate}, up to {self.parallel} at once"
        )


@dataclass(frozen=True)
class PromptsRequest:
    """artifact: the path as the user named it. output: None writes answers as they are done.
    session: how the artifact was loaded, as far as that can change an answer."""

    prompts: Path
    artifact: str
    output: Path | None
    overwrite: bool = False
    batch: BatchOptions = field(default_factory=BatchOptions)
    session: Mapping[str, Any] = field(default_factory=dict)


def run_prompts(
    request: PromptsRequest,
    asking: Asking,
    rows: list[PromptRow],
    emit: Callable[[dict[str, Any]], None],
    advance: Advance = lambda answers: None,
) -> PromptsReport:
    """Answer all rows.

    Args:
        emit: given every answer as it is done where there is no output file.
        advance: told of every answer.

    Raises:
        OutputError: the output exists, or is of another run.
    """
    batch = open_batch(asking.loaded, request.batch)
    if batch.max_sequences == 1 and len(rows) > 1:
        say("this runtime holds one sequence at a time: prompts are answered one by one")
    start, counts = time.perf_counter(), {"tokens": 0, "skipped": 0}

    def take(answer: dict[str, Any]) -> None:
        counts["tokens"] += answer.get("generated_tokens", 0)
        counts["skipped"] += "error" in answer
        advance(1)

    if request.output is None:

        def tell(answer: dict[str, Any]) -> None:
            take(answer)
            emit(answer)

        answer_rows(asking, batch, rows, tell)
        resumed = 0
    else:
        with answers_file(request.output, purpose_of(request, asking), request.overwrite) as kept:
            resumed = len(kept.found)
            for answer in kept.found.values():
                counts["skipped"] += "error" in answer
            advance(resumed)

            def keep(answer: dict[str, Any]) -> None:
                take(answer)
                kept.add(answer)

            answer_rows(asking, batch, [r for r in rows if r.index not in kept.found], keep)
    seconds = time.perf_counter() - start
    return PromptsReport(
        request.output,
        len(rows),
        counts["skipped"],
        resumed,
        counts["tokens"],
        seconds,
        batch.max_sequences,
    )


def purpose_of(request: PromptsRequest, asking: Asking) -> dict[str, Any]:
    """What decides over the answers: a run that differs in any of it does not go on with those of
    another."""
    place = Path(request.artifact).expanduser()
    hashes = FileHashes()
    files = hashes.of_files(artifact_files(place), place.parent if place.is_file() else place)
    return {
        "artifact": hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest(),
        "prompts": hashlib.sha256(request.prompts.read_bytes()).hexdigest(),
        "settings": {name: value for name, value in asking.given.items() if value is not None},
        "stop": list(asking.stop),
        "system": asking.system,
        "raw": asking.raw,
        "activations": request.batch.activations,
        "runtime": asking.loaded.runtime,
        "provider": asking.loaded.provider,
        "session": dict(request.session),
    }


def load_rows(path: Path) -> list[PromptRow]:
    """With a warning that names what cannot be used."""
    rows = prompt_rows(path)
    wrong = [row for row in rows if row.error is not None]
    if wrong:
        shown = "; ".join(f"row {row.index + 1}: {row.error}" for row in wrong[:3])
        more = "; …" if len(wrong) > 3 else ""
        say(f"warning: {path}: {len(wrong)} of {len(rows)} rows get no answer: {shown}{more}")
    return rows
