"""`dsconv serve`."""

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .options import AllowFallback, Kv, Provider, Threads

EXAMPLE = "dsconv serve r1.dsq --port 8000"
KEY = "DSCONV_API_KEY"
EXTRA = ("starlette", "uvicorn")


def serve(
    artifact: Annotated[
        str, typer.Argument(help="Exported folder, .dsq file, or checkpoint (torch)")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model (default: the artifact's name)")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help=f"Clients must send it; better in the environment as {KEY}"),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may use the server (* is any); repeatable"),
    ] = None,
    parallel: Annotated[
        int, typer.Option(help="Texts written at once, at most; 0 is what the runtime takes", min=0)
    ] = 0,
    cache_memory: Annotated[
        str | None,
        typer.Option(help="Keys and values of all texts, as 4GiB (default: half of what is free)"),
    ] = None,
    activations: Annotated[
        str, typer.Option(help="Rounding of a .dsq's activations", metavar="int8|own|int16")
    ] = "own",
    draft: Annotated[
        str | None,
        typer.Option(help="A smaller artifact of the same tokens guesses while texts are few"),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Of one answer, at most; 0 is the context", min=0)
    ] = 0,
    queue: Annotated[int, typer.Option(help="Texts that may wait; more get 429", min=0)] = 256,
    max_body: Annotated[str, typer.Option(help="Largest request")] = "8MiB",
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds that a connection may send nothing", min=0.1)
    ] = 60.0,
    slow_timeout: Annotated[
        float, typer.Option(help="Seconds for a request to arrive, a reader to read", min=0.1)
    ] = 30.0,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running texts get when the server ends", min=0.0)
    ] = 30.0,
    provider: Provider = "cpu",
    allow_fallback: AllowFallback = False,
    dtype: Annotated[str, typer.Option(help="Torch reference: float32 or bfloat16")] = "float32",
    threads: Threads = 0,
    kv: Kv = "fp16",
) -> None:
    """Answer many clients at once over HTTP, in the shape of OpenAI's interface. Ends with Ctrl-C
    or SIGTERM, when what is being written is done."""
    _require_extra()
    from dsconv.errors import UsageError
    from dsconv.runtime.batches.open import BatchOptions
    from dsconv.runtime.console import parse_size
    from dsconv.runtime.generate.draft import draft_for, load_draft
    from dsconv.runtime.serve.app import Access
    from dsconv.runtime.serve.served import Limits
    from dsconv.runtime.serve.server import Address, bind
    from dsconv.runtime.serve.start import start
    from dsconv.runtime.sessions.load import load

    limits = Limits(
        tokens=max_tokens,
        queue=queue,
        body_bytes=parse_size(max_body),
        idle=idle_timeout,
        slow=slow_timeout,
        drain=drain_timeout,
    )
    if limits.body_bytes < 1:
        raise UsageError(f"--max-body {max_body}", "use a size such as 8MiB")
    cache = parse_size(cache_memory) if cache_memory else 0
    options = BatchOptions(parallel, cache, activations)
    address = Address(host, port)
    access = Access(_key(api_key), address.is_loopback, _origins(cors or []))
    shown = name or _name_of(artifact)
    with bind(address) as place:  # before the model is loaded, which may take long
        small = load_draft(draft, threads, kv) if draft is not None else None
        loaded = load(artifact, provider, threads, dtype, kv, allow_fallback)
        if draft is not None and small is not None:
            options = replace(options, guesser=draft_for(loaded, small, draft))
        start(loaded, options, shown, limits, access, place)


def _require_extra() -> None:
    from dsconv.errors import ProviderError

    missing = [package for package in EXTRA if find_spec(package) is None]
    if missing:
        raise ProviderError(
            f"serve needs {' and '.join(missing)}, not installed", "pip install 'dsconv[serve]'"
        )


def _key(given: str | None) -> str | None:
    """Of the option, else of the environment.

    Raises:
        UsageError: no client could send it.
    """
    from dsconv.errors import UsageError

    key = os.environ.get(KEY) if given is None else given
    if key is None:
        return None
    if not key or not key.isprintable() or " " in key:
        raise UsageError("the API key is empty, or has spaces", "use letters and digits")
    return key


def _origins(given: list[str]) -> tuple[str, ...]:
    """As browsers send them.

    Raises:
        UsageError: no browser would.
    """
    from dsconv.errors import UsageError

    for origin in given:
        if origin not in ("*", "null") and not re.fullmatch(
            r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin
        ):
            raise UsageError(
                f"--cors {origin}: is no origin", "write http://HOST:PORT without a path, or *"
            )
    return tuple(given)


def _name_of(artifact: str) -> str:
    """Its last part, as people call it."""
    return Path(artifact).expanduser().resolve().name.removesuffix(".dsq") or artifact
