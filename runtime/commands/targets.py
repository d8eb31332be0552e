"""`dsconv lint` and `dsconv targets` between parsing and printing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.targets.lint import LintResult, lint
from dsconv.convert.targets.table import TARGETS, find_target
from dsconv.convert.targets.target import Target
from dsconv.runtime.console import say


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

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if self.passed:
            say(
                f"{self.artifact}: {self.result.nodes} nodes, nothing found for target "
                f"{self.result.target}"
            )
            return
        table = Table(title=self.summary, title_justify="left")
        for column in ("node", "operator", "finding", "fix"):
            table.add_column(column, overflow="fold")
        many = len(self.result.files) > 1
        for f in self.result.findings:
            node = f"{f.file}: {f.node}" if many else f.node
            table.add_row(*map(Text, (node, f.operator, f.message, f.fix)))
        Console().print(table)


@dataclass(frozen=True)
class TargetsReport:
    targets: tuple[Target, ...]

    def to_json(self) -> dict[str, Any]:
        return {"targets": [_to_json(target) for target in self.targets]}

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column in ("target", "hardware", "takes", "ONNX graph", "how sure"):
            table.add_column(column)
        for target in self.targets:
            takes = ", ".join(target.artifacts) or "nothing from here"
            table.add_row(target.name, target.hardware, takes, _graph_text(target), target.evidence)
        Console().print(table)


def _graph_text(target: Target) -> str:
    recipe = target.recipe
    if recipe is None:
        return ""
    shapes = "open shapes" if recipe.prefill_length is None else "fixed shapes"
    return f"{recipe.dialect}, {recipe.precision}, {shapes}"


def _to_json(target: Target) -> dict[str, Any]:
    recipe, rules = target.recipe, target.rules
    return {
        "name": target.name,
        "hardware": target.hardware,
        "artifacts": list(target.artifacts),
        "evidence": target.evidence,
        "provider": target.provider,
        "options": dict(target.options),
        "wheel": target.wheel,
        "versions": target.versions,
        "dialect": recipe and recipe.dialect,
        "precision": recipe and recipe.precision,
        "fixed_shapes": bool(rules and rules.fixed_shapes),
        "opsets": list(rules.opsets) if rules else None,
        "zero_points": rules and rules.zero_points,
        "graph_bytes": rules and rules.graph_bytes,
        "notes": [asdict(note) for note in target.notes],
    }


def lint_command(artifact: Path, target: str) -> LintReport:
    """Raises InputError, UsageError, UnsupportedError as `lint` and the table do."""
    return LintReport(artifact, lint(artifact, find_target(target)))


def targets_command() -> TargetsReport:
    return TargetsReport(tuple(TARGETS.values()))
