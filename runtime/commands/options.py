"""Options that several commands share, and how they print."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from dsconv.errors import UsageError
from dsconv.runtime.command_line.completion import CACHES, one_of, providers
from dsconv.runtime.console import working
from dsconv.runtime.console.level import Level, at_level

Command = Callable[..., None]
SEVERAL = tuple[str, ...]  # the type of an option that may be repeated

Model = Annotated[
    str,
    typer.Argument(
        help="Folder, .gguf file, or hub name (org/model, org/model@revision, org/model:Q4_K_M, "
        "hf://org/model/X.gguf)"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output, or an unfinished other run")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]
Threads = Annotated[int, typer.Option(help="Threads; 0 is one per core", min=0)]
Kv = Annotated[
    str,
    typer.Option(
        "--kv",
        help="Keys and values of a .dsq: fp16, int8 (half the memory), fp32 (twice)",
        metavar="|".join(CACHES),
        autocompletion=one_of(CACHES),
    ),
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
        help="cpu, cuda, tensorrt, openvino, qnn, webgpu, dml, coreml, migraphx, cann, musa (see "
        "doctor), with a device as cuda:1; for a checkpoint torch:cuda, torch:npu, …",
        metavar="PROVIDER",
        autocompletion=providers,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr; errors stay")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every step on stderr: each matrix, each file")
]
AllowFallback = Annotated[
    bool,
    typer.Option("--allow-fallback", help="The CPU runs what the provider leaves; shows how much"),
]


# Those that are done at once, run, whose prompt waits, and serve, which waits for requests.
INSTANT = ("run", "serve", "targets", "recipes")


def telling(command: Command) -> Command:
    """With --quiet and --verbose; a terminal shows at once that something is going on."""
    name = command.__name__
    given = inspect.signature(command, eval_str=True).parameters.values()
    added = (
        Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
        Parameter("verbose", Parameter.KEYWORD_ONLY, default=False, annotation=Verbose),
    )

    @wraps(command)
    def told(*, quiet: bool = False, verbose: bool = False, **values: Any) -> None:
        if quiet and verbose:
            raise UsageError("--quiet and --verbose", "use one of the two")
        wanted = Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL
        with at_level(wanted), nullcontext() if name in INSTANT else working(name):
            command(**values)

    told.__signature__ = inspect.Signature([*_by_keyword(given), *added])  # type: ignore[attr-defined]
    told.__annotations__ = {p.name: p.annotation for p in (*given, *added)}
    return told


def _by_keyword(parameters: Iterable[Parameter]) -> Iterator[Parameter]:
    """typer calls by keyword; only so may one without a default come after one that has one."""
    for parameter in parameters:
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)


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
        limits = entry.metadata["limits"]
        choices = tuple(map(str, limits.choices)) if limits else ()
        words = typer.Option(
            *flags,
            help=entry.metadata["help"],
            metavar="|".join(choices) or ("TEXT" if several else None),
            autocompletion=one_of(choices) if choices else None,
        )
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
