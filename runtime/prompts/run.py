"""From a file of prompts to a file of answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.convert.files.hashes import FileHashes, artifact_files, combined
from dsconv.errors import UsageError
from dsconv.progress import Advance
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.console import rate_text, say
from dsconv.runtime.model_paths import local_path
from dsconv.runtime.sessions.load import Loaded

from .answer import Asking, answer_rows
from .output import answers_file
from .rows import PromptFile, prompt_rows

SHARD = re.compile(r"(.+-)\d{5}(-of-\d{5}\.gguf)")


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


# Options of `run` that change no answer to a file of prompts. All others are part of what a run was
# asked, so another one does not go on with its answers: a new option is, unless it is named here.
WITHOUT_EFFECT = frozenset(
    (
        *("artifact", "prompts"),  # what is in them counts
        *("output", "overwrite", "as_json", "quiet", "verbose"),
    )
)
# The same of a native file, whose sequences get the same bits from any number of threads and in any
# company. Other runtimes round in another order.
WITHOUT_EFFECT_IF_NATIVE = frozenset(("parallel", "threads"))


@dataclass(frozen=True)
class PromptsRequest:
    """artifact: the path as the user named it. output: None writes answers as they are done.

    options: of the command, all of them, by the names of its parameters.
    """

    prompts: Path
    artifact: str
    output: Path | None
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: BatchOptions = field(default_factory=BatchOptions)

    def refuse_overwriting(self) -> None:
        """Raises UsageError: the answers would take the place of what is read."""
        if self.output is None:
            return
        for word, path in (("prompts", self.prompts), ("artifact", Path(self.artifact))):
            path = path.expanduser()
            if self.output.exists() and path.exists() and self.output.samefile(path):
                raise UsageError(
                    f"-o {self.output}: that is the {word} itself",
                    "name another file for the answers",
                )


def run_prompts(
    request: PromptsRequest,
    asking: Asking,
    file: PromptFile,
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
    batch, rows = open_batch(asking.loaded, request.batch), file.rows
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
        purpose = purpose_of(request, asking.loaded, file)
        with answers_file(request.output, purpose, request.overwrite) as kept:
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


def purpose_of(request: PromptsRequest, loaded: Loaded, file: PromptFile) -> dict[str, Any]:
    """What decides over the answers."""
    without = WITHOUT_EFFECT
    if loaded.runtime == "native":
        without |= WITHOUT_EFFECT_IF_NATIVE
    options = {
        name: value if isinstance(value, int | float | list | tuple) else value and str(value)
        for name, value in request.options.items()
        if name not in without
    }
    draft = request.options.get("draft")
    return {
        **options,
        "dsconv": __version__,
        "artifact": artifact_digest(request.artifact),
        "draft": artifact_digest(str(draft)) if draft else None,
        "prompts": file.sha256,
        "activations": request.batch.activations,
    }


def artifact_digest(artifact: str) -> str:
    """One digest over all of its files; a model of the hub is where it was downloaded to."""
    place = Path(local_path(artifact)).expanduser()
    folder = place.parent if place.is_file() else place
    shards = SHARD.fullmatch(place.name)
    files = sorted(folder.glob(f"{shards[1]}*{shards[2]}")) if shards else artifact_files(place)
    return combined(FileHashes().of_files(files, folder))


def load_rows(path: Path) -> PromptFile:
    """With a warning that names what cannot be used."""
    file = prompt_rows(path)
    wrong = [row for row in file.rows if row.error is not None]
    if wrong:
        shown = "; ".join(f"row {row.index + 1}: {row.error}" for row in wrong[:3])
        more = "; …" if len(wrong) > 3 else ""
        total = len(file.rows)
        say(f"warning: {path}: {len(wrong)} of {total} rows get no answer: {shown}{more}")
    names = sorted({row.model for row in file.rows if row.model})
    if names:
        more = ", …" if len(names) > 3 else ""
        say(f"note: rows ask {', '.join(names[:3])}{more}; the artifact answers them")
    return file
