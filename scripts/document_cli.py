"""Write docs/cli.md from what `--help` shows of every command.

python scripts/document_cli.py         write it
python scripts/document_cli.py check   exit code 1 when the file says something else
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dsconv.cli import app
from dsconv.runtime.command_line import help

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
TITLE = """# The command line

Made by `scripts/document_cli.py` from what `dsconv COMMAND --help` shows; a test compares the two.

- **Result and words.** The result goes to stdout, words and progress to stderr. On a terminal a
  line says at once what is going on, how fast, and how long it has taken and will take (`elapsed
  0:03, left 0:05`). Where stderr is no terminal, a plain line says the same after ten seconds,
  then at every tenth, at most every ten seconds and at least once a minute.
- **`--quiet`** leaves out progress and notes, warnings too; errors stay, and so do the thoughts
  that `run` shows. **`--verbose`** adds what each step gave: the signal over noise of every
  matrix (`quantize`) or layer (`verify`), every file (`pull`, `export`). Both stand behind the
  command.
- **`--json`** prints the result, or the error, as one object: [json.md](json.md), which has the
  exit codes too.
- **Completion.** `dsconv --install-completion` adds it to the shell that it is called from (bash,
  zsh, fish, PowerShell); `dsconv --show-completion` prints it instead. Commands, options,
  recipes, targets, formats, providers and other choices are completed.
- Without a command the help is shown, with exit code 2.
"""


def page() -> str:
    """The whole page."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join(
        [TITLE, *(line for name in commands for line in section(name, commands[name]))]
    )


def section(name: str, command: Any) -> Iterator[str]:
    """One command: what it does, its example, its arguments and options."""
    words = [parameter for parameter in command.params if is_argument(parameter)]
    shown = "".join(f" {placeholder(parameter)}" for parameter in words)
    yield f"## {name}\n\n{command.help.strip()}\n"
    yield f"```\ndsconv {name}{shown} [OPTIONS]\n```\n"
    yield f"Example: `{command.epilog.removeprefix('Example: ')}`\n"
    yield "| option | default | |"
    yield "|---|---|---|"
    groups = help.groups_of(name)
    rows: dict[str, list[str]] = {heading: [] for heading in (help.ARGUMENTS, help.PLAIN, *groups)}
    for parameter in command.params:
        row = f"| {spelling(parameter)} | {default(parameter)} | {cell(parameter.help)} |"
        rows[help.heading_of(parameter, groups)].append(row)
    for heading, lines in rows.items():
        if lines and heading in groups:
            yield f"| *{heading}* | | |"
        yield from lines
    yield ""


def is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def placeholder(argument: Any) -> str:
    word = argument.name.upper() + ("…" if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def spelling(parameter: Any) -> str:
    if is_argument(parameter):
        return f"`{placeholder(parameter)}`"
    # the long name first, as everywhere else in these pages
    names = sorted(parameter.opts, key=len, reverse=True) + list(parameter.secondary_opts)
    shown = ", ".join(f"`{name}`" for name in names)
    choices = parameter.metavar or ""
    return f"{shown} {cell(choices)}" if "|" in choices else shown


def default(parameter: Any) -> str:
    """As typed on the command line; empty where there is none, or the help says it."""
    value = parameter.default
    if parameter.required:
        return "required"
    if isinstance(value, bool):
        names = (parameter.opts, parameter.secondary_opts)[not value]
        return f"`{names[0]}`" if parameter.secondary_opts else ""
    return "" if value is None else f"`{value}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    if sys.argv[1:] not in ([], ["check"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what --help says; run python scripts/document_cli.py")


if __name__ == "__main__":
    main()
