"""`dsconv doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dsconv.runtime.command_line import completion

from .options import Json, print_json

if TYPE_CHECKING:
    from dsconv.runtime.doctor.diagnose import Diagnosis, GraphResult, TargetState

EXAMPLE = "dsconv doctor openvino torch:cuda"


def doctor(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="native, providers, torch:DEVICE (default: all)",
            autocompletion=completion.providers,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, what of it really works, and what would fix the rest."""
    from dsconv.runtime.doctor.diagnose import diagnose, refuse_unknown_targets

    chosen = targets or []
    refuse_unknown_targets(chosen)
    diagnosis = diagnose(chosen)
    print_json(diagnosis.to_json()) if as_json else show(diagnosis)


def show(diagnosis: "Diagnosis") -> None:
    """What works first; then what to do for the rest."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("target", "state", "version", "int4", "fp16"):
        table.add_column(column, no_wrap=True)
    table.add_column("", overflow="fold")
    order = {"works": 0, "broken": 1, "missing": 2}
    for target in sorted(diagnosis.targets, key=lambda t: order[t.state]):
        graphs = [_words(target.graphs.get(name)) for name in ("int4", "fp16")]
        row = (target.name, target.state, target.version, *graphs, _remark(target))
        table.add_row(*map(Text, row))  # as it is: commands have brackets, as markup does
    Console().print(table)
    for problem in diagnosis.problems:
        print(f"problem: {problem.what}\n    fix: {problem.cure}")


def _words(result: "GraphResult | None") -> str:
    if result is None:
        return ""
    if result.error is None:
        return "-"
    return f"{result.error:.1e}" if result.passed else f"WRONG {result.error:.1e}"


def _remark(target: "TargetState") -> str:
    if target.kernels:
        return "kernels: " + ", ".join(target.kernels)
    if target.state == "missing":
        return target.cure
    return f"{target.detail}; fix: {target.cure}" if target.detail else ""
