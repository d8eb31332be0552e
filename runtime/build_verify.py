"""The verify step of a build: [verify] of a recipe -> verdict.json, and the report where it can be.

The only place that knows how a recipe's keys become a verdict.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..atomic import MANIFEST
from .recipe import VerifyPart
from .verify import read_text

VERDICT, REPORT = "verdict.json", "report.html"


@dataclass(frozen=True)
class Judgement:
    """`failures`: one sentence for everything that the gate does not let pass."""

    passed: bool
    failures: tuple[str, ...]
    content: Mapping[str, Any]
    report: str | None = None

    def write(self, folder: Path) -> None:
        """verdict.json and, where there is one, report.html."""
        text = json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"
        (folder / VERDICT).write_text(text, "utf-8")
        if self.report is not None:
            (folder / REPORT).write_text(self.report, "utf-8")


def purpose_of(part: VerifyPart) -> dict[str, Any]:
    """What decides the verdict beside the two models."""
    text = read_text(None if part.text is None else Path(part.text))
    return {**asdict(part), "text": hashlib.sha256(text.encode()).hexdigest()}


def judge(artifact: Path, reference: Path, part: VerifyPart, threads: int) -> Judgement:
    """Measure the artifact in its own runtime against the model it was made from."""
    from .commands import verify_command

    text = None if part.text is None else Path(part.text)
    done = verify_command(
        str(artifact),
        str(reference),
        text,
        part.options(),
        part.provider,
        part.dtype,
        threads,
        part.kv,
    )
    verdict = done.verdict
    failures = tuple(verdict.failures)
    return Judgement(verdict.passed, failures, verdict.to_json(), _report(verdict))


def _report(verdict: Any) -> str | None:
    """The page of report.py; None where that module, or what it shows, is not there."""
    from .verdict import Verdict

    if not isinstance(verdict, Verdict) or find_spec(f"{__package__}.report") is None:
        return None
    page = importlib.import_module(f"{__package__}.report").report_html(verdict)
    assert isinstance(page, str)
    return page


def result_files(folder: Path) -> list[Path]:
    """What belongs beside the artifact."""
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)
