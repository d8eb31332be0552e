"""Options that several commands share, and how they print."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

Command = Callable[..., None]
SEVERAL = tuple[str, ...]  # the type of an option that may be repeated

Model = Annotated[
    str,
    typer.Argument(
        help="Folder, .gguf file, or hub name (org/model, org/model@revision, hf://org/model/X.gguf)"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output, or an unfinished other run")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]
Threads = Annotated[int, typer.Option(help="Threads; 0 is one per core", min=0)]
Kv = Annotated[
    str, typer.Option("--kv", help="Keys and values of a .dsq: fp16, or int8 (half the memory)")
]
ReferenceCache = Annotated[
    Path | None,
    typer.Option(help="Folder of the reference's predictions (default: ~/.cache/dsconv)"),
]
NoReferenceCache = Annotated[
    bool, typer.Option("--no-reference-cache", help="Run the reference, and keep nothing of it")
]
Provider = Annotated[
    str,
    typer.Option(
        help="Execution provider: cpu, cuda, openvino, qnn, … (see doctor), with a device as "
        "cuda:1; for a checkpoint torch:cuda, torch:npu, …"
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option("--allow-fallback", help="The CPU runs what the provider leaves; shows how much"),
]


def asking(request: type[Any], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """The command's parameter of this dataclass becomes one option per field (`option_fields.py`).

    without: fields that keep their defaults.
    """
    options = _options_of(request, without)
    several = [entry.name for entry in fields(request) if entry.type == SEVERAL]

    def decorate(command: Command) -> Command:
        parameters: list[Parameter] = []
        place = ""
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.annotation is request:
                place = parameter.name
                parameters += options
            else:
                parameters.append(parameter)

        @wraps(command)
        def parsed(**values: Any) -> None:
            chosen = {option.name: values.pop(option.name) for option in options}
            for name in several:
                chosen[name] = tuple(chosen[name] or ())
            command(**values, **{place: request(**chosen)})

        parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {p.name: p.annotation for p in parameters}
        return parsed

    return decorate


def _options_of(request: type[Any], without: Collection[str]) -> list[Parameter]:
    """In the order of help."""
    found: list[Parameter] = []
    for entry in fields(request):
        if entry.name in without:
            continue
        several = entry.type == SEVERAL
        kind: Any = list[str] | None if several else entry.type
        flags = filter(None, [entry.metadata["flag"]])
        words = typer.Option(*flags, help=entry.metadata["help"])
        default = None if several else entry.default
        option = Parameter(
            entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, words]
        )
        names = [other.name for other in found]
        after = entry.metadata["after"]
        found.insert(len(found) if after is None else names.index(after) + 1, option)
    return found


def print_json(content: dict[str, Any]) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(content, ensure_ascii=not is_utf8, indent=2))
