"""`dsconv doctor`: the diagnosis as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsconv.errors import UsageError
from dsconv.runtime.console import progress
from dsconv.runtime.doctor.diagnose import Diagnosis, GraphResult, TargetState, diagnose
from dsconv.runtime.doctor.probe import NATIVE
from dsconv.runtime.sessions.providers import refuse_unknown


@dataclass(frozen=True)
class DoctorReport:
    diagnosis: Diagnosis

    def to_json(self) -> dict[str, Any]:
        return self.diagnosis.to_json()

    def show(self) -> None:
        """What works first; then what to do for the rest."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("target", "state", "version", "int4", "fp16"):
            table.add_column(column, no_wrap=True)
        table.add_column("", overflow="fold")
        order = {"works": 0, "broken": 1, "missing": 2}
        for target in sorted(self.diagnosis.targets, key=lambda t: order[t.state]):
            graphs = [_words(target.graphs.get(name)) for name in ("int4", "fp16")]
            row = (target.name, target.state, target.version, *graphs, _remark(target))
            table.add_row(*map(Text, row))  # as it is: commands have brackets, as markup does
        Console().print(table)
        for problem in self.diagnosis.problems:
            print(f"problem: {problem.what}\n    fix: {problem.cure}")


def _words(result: GraphResult | None) -> str:
    if result is None:
        return ""
    if result.error is None:
        return "-"
    return f"{result.error:.1e}" if result.passed else f"WRONG {result.error:.1e}"


def _remark(target: TargetState) -> str:
    if target.kernels:
        return "kernels: " + ", ".join(target.kernels)
    if target.state == "missing":
        return target.cure
    return f"{target.detail}; fix: {target.cure}" if target.detail else ""


def doctor_command(names: list[str]) -> DoctorReport:
    """Try `names`, or every target.

    Raises:
        UsageError: no such target.
    """
    for name in names:
        if name != NATIVE:
            refuse_unknown(name)
    if len(set(names)) != len(names):
        raise UsageError("a target is named twice", "name each once")
    with progress("doctor", 1, "runs") as advance:
        diagnosis = diagnose(names)
        advance(1)
    return DoctorReport(diagnosis)
