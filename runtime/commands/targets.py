"""`dsconv targets`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsconv.runtime.command_line import completion

from .options import Json, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dsconv.convert.targets.target import Target

EXAMPLE = "dsconv targets nvidia"


def targets(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="Part of a name, a glob, or a vendor (default: all)",
            autocompletion=completion.targets,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List where a model can run, what each place takes, and how sure that is."""
    from dsconv.convert.targets.table import TARGETS, matching

    found = TARGETS.values() if pattern is None else matching(pattern)
    if as_json:
        print_json({"targets": [_to_json(target) for target in found]})
    else:
        show(found)


def show(targets: "Iterable[Target]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("target", "hardware", "takes", "ONNX graph", "how sure"):
        table.add_column(column)
    for target in targets:
        takes = ", ".join(target.artifacts) or "nothing from here"
        table.add_row(target.name, target.hardware, takes, _graph_text(target), target.evidence)
    Console().print(table)


def _graph_text(target: "Target") -> str:
    recipe = target.recipe
    if recipe is None:
        return ""
    shapes = "open shapes" if recipe.prefill_length is None else "fixed shapes"
    return f"{recipe.dialect}, {recipe.precision}, {shapes}"


def _to_json(target: "Target") -> dict[str, Any]:
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
