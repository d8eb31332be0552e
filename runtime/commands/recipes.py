"""`dsconv recipes`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsconv.errors import UsageError
from dsconv.runtime.command_line import completion

from .options import Json, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsconv.runtime.build.recipe import Recipe

EXAMPLE = "dsconv recipes 7b"


def recipes(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="Part of a name or of the model's, or a glob: 7b, '*-int4', qwen3 (default: all)",
            autocompletion=completion.recipes,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with dsconv."""
    from dsconv.convert.targets.table import fits
    from dsconv.runtime.build.recipe import all_recipes

    every = all_recipes()
    word = (pattern or "").lower()
    found = [
        recipe
        for recipe in every
        if any(fits(text.lower(), word) for text in (recipe.name, recipe.source))
    ]
    if not found:
        parts = dict.fromkeys(part for recipe in every for part in recipe.name.split("-"))
        raise UsageError(f"no recipe fits {pattern!r}", f"use a part of a name: {', '.join(parts)}")
    if as_json:
        print_json({"recipes": [_to_json(recipe) for recipe in found]})
    else:
        show(found)


def _to_json(recipe: "Recipe") -> dict[str, Any]:
    return {key: value for key, value in asdict(recipe).items() if key != "file"}


def show(recipes: "Sequence[Recipe]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("recipe", "weights", "format", "KL ≤", "top-1 ≥"):
        table.add_column(column, no_wrap=True)
    for recipe in recipes:
        limits = (recipe.verify.max_kl, recipe.verify.min_top1)
        shown = ("" if limit is None else f"{limit:g}" for limit in limits)
        table.add_row(recipe.name, _weights(recipe), recipe.export.format, *shown)
    Console().print(table)


def _weights(recipe: "Recipe") -> str:
    """`int4 g32`, `scale-min 4`, `w8a8` (int8 weights and inputs)."""
    part = recipe.quantize
    if part is None:
        return "as they are"
    if part.scheme == "scale-min":
        label = f"scale-min {part.bits}"
    elif part.activations == "int8":
        label = "w8a8"
    else:
        label = f"int{part.bits} g{part.group_size}"
    return label if part.target_bpw is None else f"{label}, {part.target_bpw:g} bits in all"
