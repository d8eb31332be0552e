"""`dsconv lint`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsconv.errors import VerdictFailed
from dsconv.runtime.command_line import completion

from .options import Json, print_json

if TYPE_CHECKING:
    from dsconv.convert.targets.lint import LintResult

EXAMPLE = "dsconv lint model.onnx --target qnn"


def lint(
    artifact: Annotated[Path, typer.Argument(help="A .onnx file, whoever made it, or its folder")],
    target: Annotated[
        str,
        typer.Option(help="Where it is to run (dsconv targets)", autocompletion=completion.targets),
    ],
    as_json: Json = False,
) -> None:
    """Check a graph against what a target takes; exit code 1 when it would not run there."""
    from dsconv.convert.targets.lint import lint
    from dsconv.convert.targets.table import find_target

    result = lint(artifact, find_target(target))
    print_json(_to_json(artifact, result)) if as_json else show(artifact, result)
    if result.findings:
        fixes = [finding.fix for finding in result.findings]
        most = max(dict.fromkeys(fixes), key=fixes.count)  # the cure that most findings name
        raise VerdictFailed(_summary(artifact, result), most)


def _summary(artifact: Path, result: "LintResult") -> str:
    count = len(result.findings)
    things = "1 finding" if count == 1 else f"{count} findings"
    return f"{artifact}: {things} for target {result.target}"


def _to_json(artifact: Path, result: "LintResult") -> dict[str, Any]:
    return {
        "artifact": str(artifact),
        "target": result.target,
        "passed": not result.findings,
        "files": list(result.files),
        "nodes": result.nodes,
        "findings": [asdict(finding) for finding in result.findings],
    }


def show(artifact: Path, result: "LintResult") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsconv.runtime.console import say

    if not result.findings:
        say(f"{artifact}: {result.nodes} nodes, nothing found for target {result.target}")
        return
    table = Table(title=_summary(artifact, result), title_justify="left")
    for column in ("node", "operator", "finding", "fix"):
        table.add_column(column, overflow="fold")
    many = len(result.files) > 1
    for f in result.findings:
        node = f"{f.file}: {f.node}" if many else f.node
        table.add_row(*map(Text, (node, f.operator, f.message, f.fix)))
    Console().print(table)
