"""`dsconv run`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AllowFallback, Json, Kv, Provider, Threads, print_json

if TYPE_CHECKING:
    from dsconv.runtime.generate.answer import Answer
    from dsconv.runtime.text.thinking import Kind

EXAMPLE = 'dsconv run r1-onnx -p "How many primes are below 50?"'


def run(
    artifact: Annotated[
        str, typer.Argument(help="Exported folder, .dsq file, or checkpoint (torch)")
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask")],
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template")] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest; 0 is off")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling")] = 0,
    speculate: Annotated[
        int,
        typer.Option(help="Tokens to guess ahead from the text so far; 0 is off", min=0, max=64),
    ] = 0,
    provider: Provider = "cpu",
    allow_fallback: AllowFallback = False,
    dtype: Annotated[str, typer.Option(help="Torch reference: float32 or bfloat16")] = "float32",
    threads: Threads = 0,
    kv: Kv = "fp16",
    as_json: Json = False,
) -> None:
    """Generate text; thoughts go to stderr, the answer to stdout."""
    from dsconv.convert.checkpoint.checkpoint import generation_config
    from dsconv.runtime.generate.answer import UserPrompt, answer
    from dsconv.runtime.generate.sampling import from_generation_config
    from dsconv.runtime.sessions.load import load

    loaded = load(artifact, provider, threads, dtype, kv, allow_fallback)
    defaults = from_generation_config(generation_config(loaded.side_files))
    sampling = defaults.with_overrides(temperature, top_p, top_k, seed)
    emit = _ignore if as_json else _emit
    asked = UserPrompt(prompt, system, raw)
    reply = answer(loaded, asked, sampling, max_tokens, emit, speculate)
    print_json(reply.to_json()) if as_json else show(reply)


def _ignore(kind: "Kind", text: str) -> None:
    """With --json everything comes at the end."""


def _emit(kind: "Kind", text: str) -> None:
    """Thoughts go to stderr and the answer to stdout as they come."""
    file = sys.stderr if kind == "think" else sys.stdout
    dim = kind == "think" and file.isatty()
    print(f"\x1b[2m{text}\x1b[0m" if dim else text, end="", file=file, flush=True)


def show(reply: "Answer") -> None:
    """What comes after the text."""
    from dsconv.runtime.console import say

    g, guesses, loaded = reply.generation, reply.speculation, reply.loaded
    guessed = f", {guesses.accepted} of {guesses.proposed} guesses right" if guesses else ""
    print()
    say(
        f"\n{len(g.tokens)} tokens ({g.stop_reason}), prefill "
        f"{g.prefill_tokens_per_second:.0f} tokens/s, decode "
        f"{g.decode_tokens_per_second:.1f} tokens/s, {loaded.runtime} on "
        f"{loaded.provider}{guessed}"
    )
    if loaded.placement:
        say(loaded.placement.words())
