"""`dsconv lint`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsconv.errors import VerdictFailed

from .options import Json, print_json

if TYPE_CHECKING:
    from dsconv.convert.targets.lint import LintResult

EXAMPLE = "dsconv lint model.onnx --target qnn"


def lint(
    artifact: Annotated[Path, typer.Argument(help="A .onnx file, made by whomever, or its folder")],
    target: Annotated[str, typer.Option(help="Where it shall run (dsconv targets)")],
    as_json: Json = False,
) -> None:
    """Check a graph against what a target takes; exit code 1 when it would not run there."""
    from dsconv.convert.targets.lint import lint
    from dsconv.convert.targets.table import find_target

    found = LintReport(artifact, lint(artifact, find_target(target)))
    print_json(found.to_json()) if as_json else show(found)
    if not found.passed:
        raise VerdictFailed(found.summary, found.hint)


@dataclass(frozen=True)
class LintReport:
    artifact: Path
    result: LintResult

    @property
    def passed(self) -> bool:
        return not self.result.findings

    @property
    def summary(self) -> str:
        count = len(self.result.findings)
        things = "1 finding" if count == 1 else f"{count} findings"
        return f"{self.artifact}: {things} for target {self.result.target}"

    @property
    def hint(self) -> str:
        """The cure that most findings name."""
        fixes = [finding.fix for finding in self.result.findings]
        return max(dict.fromkeys(fixes), key=fixes.count)

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": str(self.artifact),
            "target": self.result.target,
            "passed": self.passed,
            "files": list(self.result.files),
            "nodes": self.result.nodes,
            "findings": [asdict(finding) for finding in self.result.findings],
        }


def show(report: LintReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsconv.runtime.console import say

    if report.passed:
        say(
            f"{report.artifact}: {report.result.nodes} nodes, nothing found for target "
            f"{report.result.target}"
        )
        return
    table = Table(title=report.summary, title_justify="left")
    for column in ("node", "operator", "finding", "fix"):
        table.add_column(column, overflow="fold")
    many = len(report.result.files) > 1
    for f in report.result.findings:
        node = f"{f.file}: {f.node}" if many else f.node
        table.add_row(*map(Text, (node, f.operator, f.message, f.fix)))
    Console().print(table)
