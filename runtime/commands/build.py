"""`dsconv build`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsconv.errors import VerdictFailed
from dsconv.runtime.command_line import completion
from dsconv.runtime.option_fields import thread_count

from .options import Json, Threads, print_json

if TYPE_CHECKING:
    from dsconv.runtime.build.build import StepResult
    from dsconv.runtime.build.report import BuildReport

EXAMPLE = "dsconv build r1-distill-qwen-1.5b-native-int4 -o r1"


def build(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name of a recipe (dsconv recipes), or a TOML file",
            autocompletion=completion.recipes,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write (default: the recipe's name)"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE instead of the recipe's, e.g. quantize.bits=8"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and do nothing")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Pull, quantize, export and verify as a recipe says; exit code 1 when a limit is not met."""
    from dsconv.runtime.build.report import build_recipe

    report = build_recipe(recipe, output, settings or [], dry_run, thread_count(threads))
    print_json(report.to_json()) if as_json else show(report)
    if not dry_run and not report.passed:
        raise VerdictFailed("; ".join(report.failures) or "verdict: failed", report.hint)


def show(report: "BuildReport") -> None:
    from rich.console import Console
    from rich.table import Table

    from dsconv.runtime.build.build import work_folder
    from dsconv.runtime.build.model_card import quality_rows
    from dsconv.runtime.console import say, size_text, time_text

    built = report.built
    what = "would build" if report.is_plan else "built"
    print(f"{report.recipe.name}: {what} {built.output} from {built.source}")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for step in built.steps:
        done = "to do" if report.is_plan else time_text(step.seconds)
        table.add_row(step.name, "skipped" if step.reason is None else done, _why(step))
    Console().print(table)
    if report.is_plan:
        return
    say(
        f"{built.output / report.recipe.output_name}: {size_text(built.facts['size_bytes'])}, "
        f"{built.facts['bits_per_weight']:.2f} bits per weight\n"
        f"{work_folder(built.output)}: for the next build, may be removed"
    )
    quality = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for row in quality_rows(built.verdict):
        quality.add_row(*row)
    Console().print(quality)
    print("verdict: passed" if report.passed else "verdict: failed")


def _why(step: "StepResult") -> str:
    from dsconv.runtime.build.source import PULL

    if step.reason is not None:
        return step.reason
    return "on this disk" if step.name == PULL else "done before"
