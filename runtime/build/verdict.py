"""The verify step of a build: [verify] of a recipe -> verdict.json and the report.

The only place that knows how a recipe's keys become a verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST
from dsconv.convert.files.cache_folder import default_folder
from dsconv.convert.files.hashes import sha256_file
from dsconv.runtime.report.page import report_html
from dsconv.runtime.text.text_file import open_text
from dsconv.runtime.verify.judge import failures
from dsconv.runtime.verify.measure import built_in_text
from dsconv.runtime.verify.run import VerifyRequest, run_verify
from dsconv.runtime.verify.thresholds import from_table
from dsconv.runtime.verify.verdict_json import to_json

from .recipe import Recipe, VerifyPart

VERDICT, REPORT = "verdict.json", "report.html"


@dataclass(frozen=True)
class Judgement:
    """`failures`: one sentence for everything that the gate does not let pass; report: the page."""

    passed: bool
    failures: tuple[str, ...]
    content: Mapping[str, Any]
    report: str

    def write(self, folder: Path) -> None:
        """verdict.json and report.html."""
        text = json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"
        (folder / VERDICT).write_text(text, "utf-8")
        (folder / REPORT).write_text(self.report, "utf-8")


def purpose_of(part: VerifyPart) -> dict[str, Any]:
    """What decides the verdict beside the two models."""
    text = hashlib.sha256(built_in_text().encode()).hexdigest()
    if part.text is not None:
        with open_text(Path(part.text)) as file:
            text = file.sha256()
    baseline = None if part.baseline is None else sha256_file(Path(part.baseline))
    return {
        **asdict(part),
        "text": text,
        "baseline": baseline,
    }


def judge(artifact: Path, reference: Path, recipe: Recipe, threads: int) -> Judgement:
    """Measure the artifact in its own runtime against the model it was made from.

    Only the recipe's limits count, or where it has none the defaults: a build does not depend on
    the folder that it is started in.
    """
    part = recipe.verify
    request = VerifyRequest(
        str(artifact),
        str(reference),
        None if part.text is None else Path(part.text),
        part.options(),
        recipe=from_table(part.limits(), f"{recipe.file}: [verify]", "recipe"),
        baseline=None if part.baseline is None else Path(part.baseline),
        cache=default_folder(),
        provider=part.provider,
        dtype=part.dtype,
        threads=threads,
        kv=part.kv,
    )
    verdict = run_verify(request)
    return Judgement(
        verdict.passed, tuple(failures(verdict)), to_json(verdict), report_html(verdict)
    )


def result_files(folder: Path) -> list[Path]:
    """What belongs beside the artifact."""
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)
