"""The command line: which commands there are, in the order in which help lists them.

Each lies in the file of its name in runtime/commands/, with its options and what it prints.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dsconv import __version__
from dsconv.runtime.command_line.exit_codes import exit_code_of
from dsconv.runtime.command_line.help import GroupedCommand, GroupedCommands, first_clause
from dsconv.runtime.commands import (
    bench,
    build,
    demo,
    doctor,
    export,
    inspect,
    lint,
    plan,
    pull,
    quantize,
    recipes,
    run,
    serve,
    sign,
    targets,
    verify,
)
from dsconv.runtime.commands.options import telling

app = typer.Typer(
    cls=GroupedCommands,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize, export, run and verify distilled LLM checkpoints.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dsconv {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show version"),
    ] = False,
) -> None:
    pass


for command, example in (
    (pull.pull, pull.EXAMPLE),
    (quantize.quantize, quantize.EXAMPLE),
    (plan.plan, plan.EXAMPLE),
    (export.export, export.EXAMPLE),
    (lint.lint, lint.EXAMPLE),
    (targets.targets, targets.EXAMPLE),
    (run.run, run.EXAMPLE),
    (serve.serve, serve.EXAMPLE),
    (verify.verify, verify.EXAMPLE),
    (sign.sign, sign.EXAMPLE),
    (bench.bench, bench.EXAMPLE),
    (inspect.inspect, inspect.EXAMPLE),
    (doctor.doctor, doctor.EXAMPLE),
    (demo.demo, demo.EXAMPLE),
    (build.build, build.EXAMPLE),
    (recipes.recipes, recipes.EXAMPLE),
):
    app.command(cls=GroupedCommand, short_help=first_clause(command), epilog=f"Example: {example}")(
        telling(command)
    )


def main() -> None:
    """Entry point: run the command, turn every failure into an exit code."""
    from dsconv.runtime.sessions.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    command = typer.main.get_command(app)
    sys.exit(exit_code_of(lambda: command.main(prog_name="dsconv", standalone_mode=False)))


if __name__ == "__main__":
    main()
