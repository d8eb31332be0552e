"""`dsconv run`."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AllowFallback, Json, Kv, Overwrite, Provider, Threads, print_json

if TYPE_CHECKING:
    from dsconv.runtime.generate.answer import Answer
    from dsconv.runtime.generate.chat import Chat
    from dsconv.runtime.prompts.answer import Asking
    from dsconv.runtime.prompts.rows import PromptFile
    from dsconv.runtime.prompts.run import PromptsRequest
    from dsconv.runtime.text.thinking import Kind

EXAMPLE = 'dsconv run r1-onnx -p "How many primes are below 50?"'


def run(
    context: typer.Context,
    artifact: Annotated[
        str, typer.Argument(help="Exported folder, .dsq file, or checkpoint (torch)")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="What to ask; - reads standard input", show_default=False
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A text file with what to ask; - is standard input")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file of prompts (JSON lines, …), answered many at a time"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File of the answers to --prompts; resumes"),
    ] = None,
    overwrite: Overwrite = False,
    parallel: Annotated[
        int, typer.Option(help="Of --prompts at once (default: as the runtime takes)", min=0)
    ] = 0,
    activations: Annotated[
        str | None,
        typer.Option(
            help="Native file: how activations are rounded, in every pass alike",
            metavar="int8|own|int16",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Several turns: each line of standard input is one")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens to generate at most (default: the model's max_new_tokens, or 1024)"
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends the answer and is not shown; repeatable"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest; 0 is off")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Least share of the likeliest's probability; 0 is off")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Makes what was there less likely; 1 is off")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No run of so many tokens comes twice; 0 is off")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling")] = 0,
    speculate: Annotated[
        int,
        typer.Option(help="Tokens to guess ahead from the text so far; 0 is off", min=0, max=64),
    ] = 0,
    draft: Annotated[
        str | None,
        typer.Option(help="A smaller model of the same tokens guesses, the artifact decides"),
    ] = None,
    provider: Provider = "cpu",
    allow_fallback: AllowFallback = False,
    dtype: Annotated[str, typer.Option(help="Torch reference: float32 or bfloat16")] = "float32",
    threads: Threads = 0,
    kv: Kv = "fp16",
    as_json: Json = False,
) -> None:
    """Generate text; thoughts go to stderr, the answer to stdout. Without --prompt, what comes
    through standard input is asked."""
    from dsconv.errors import UsageError
    from dsconv.runtime.batches.open import ACTIVATIONS, BatchOptions
    from dsconv.runtime.console import say, working
    from dsconv.runtime.generate.answer import UserPrompt, answer
    from dsconv.runtime.generate.chat import Chat
    from dsconv.runtime.generate.draft import draft_for, load_draft
    from dsconv.runtime.generate.model_settings import wanted_answer
    from dsconv.runtime.generate.settings import Sampling
    from dsconv.runtime.prompts.answer import Asking
    from dsconv.runtime.prompts.run import PromptsRequest
    from dsconv.runtime.sessions.load import load, load_rounding

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "seed": seed,
    }
    Sampling().with_overrides(**given)  # a wrong one is told before the model is loaded
    if prompts is not None:
        _refuse_with_prompts(prompt, prompt_file, chat, speculate)
        request = PromptsRequest(prompts, artifact, output, overwrite, context.params)
        request.refuse_overwriting()
        rows = _rows(request, as_json)
        small = load_draft(draft, threads, kv) if draft is not None else None
        loaded = load(artifact, provider, threads, dtype, kv, allow_fallback)
        guesser = draft_for(loaded, small, draft) if draft and small else None
        asking = Asking(loaded, {**given, "max_tokens": max_tokens}, tuple(stop or ()), system, raw)
        batch = BatchOptions(parallel, activations=activations or ACTIVATIONS, guesser=guesser)
        _answer_file(replace(request, batch=batch), asking, rows, as_json)
        return
    if output is not None or parallel:
        raise UsageError("--output and --parallel belong to --prompts", "add --prompts FILE")
    if draft is not None and speculate:
        raise UsageError("--draft and --speculate both guess", "leave one of them out")
    asked = _first_prompt(prompt, prompt_file, chat, raw)
    small = load_draft(draft, threads, kv) if draft is not None else None
    if activations is None:
        loaded = load(artifact, provider, threads, dtype, kv, allow_fallback)
    else:
        loaded = load_rounding(artifact, threads, kv, activations)
    wanted = wanted_answer(loaded, {**given, "max_tokens": max_tokens}, stop or (), speculate)
    for remark in wanted.not_applied:
        say(f"warning: {remark}")
    guesser = draft_for(loaded, small, draft) if draft and small else None
    emit = _ignore if as_json else _emit
    if chat:
        conversation = Chat(loaded, system, wanted, guesser)
        turns = _talk(conversation, asked, emit)
        if as_json:
            print_json({"turns": turns})
        return
    with working("answer") if as_json else nullcontext():  # else the answer itself is seen
        reply = answer(loaded, UserPrompt(asked or "", system, raw), wanted, emit, guesser)
    print_json(reply.to_json()) if as_json else show(reply)


def _first_prompt(prompt: str | None, file: Path | None, chat: bool, raw: bool) -> str | None:
    """What is asked; in a chat what is asked first, None where the first line of input is that."""
    from dsconv.errors import UsageError
    from dsconv.runtime.text.prompt_source import STDIN, read_prompt

    if chat and raw:
        raise UsageError("--chat needs the chat template that --raw leaves out", "leave one out")
    if chat and STDIN in (prompt, str(file)):
        raise UsageError("--chat reads its turns from standard input", "leave out the -")
    if chat and prompt is None and file is None:
        return None
    return read_prompt(prompt, file)


def _refuse_with_prompts(prompt: str | None, file: Path | None, chat: bool, speculate: int) -> None:
    from dsconv.errors import UsageError

    others = {
        "--prompt": prompt is not None,
        "--prompt-file": file is not None,
        "--chat": chat,
        "--speculate": bool(speculate),
    }
    for option, given in others.items():
        if given:
            raise UsageError(f"{option} and --prompts exclude each other", "use one of them")


def _rows(request: "PromptsRequest", as_json: bool) -> "PromptFile":
    """Before the model is loaded."""
    from dsconv.atomic import refuse_existing
    from dsconv.errors import UsageError
    from dsconv.runtime.prompts.run import load_rows

    if as_json and request.output is None:
        raise UsageError("--json with --prompts needs a file for the answers", "add -o OUT.jsonl")
    if request.output is not None:
        refuse_existing(request.output, request.overwrite, single_file=True)
    return load_rows(request.prompts)


def _answer_file(
    request: "PromptsRequest", asking: "Asking", file: "PromptFile", as_json: bool
) -> None:
    """To a file, or line by line to standard output as answers are done."""
    from dsconv.runtime.console import progress, say
    from dsconv.runtime.prompts.run import run_prompts

    with progress("answers", len(file.rows), "prompts") as advance:
        report = run_prompts(
            request,
            asking,
            file,
            lambda answer: print(json.dumps(answer, ensure_ascii=False), flush=True),
            advance,
        )
    print_json(report.to_json()) if as_json else say(report.show())


def _talk(conversation: "Chat", first: str | None, emit: Any) -> list[dict[str, Any]]:
    """Turns until the input ends. On a terminal Ctrl-C ends an answer, at the mark the chat."""
    from dsconv.runtime.text.prompt_source import lines_of_stdin

    turns: list[dict[str, Any]] = []
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if first is not None:
        turns.append(_turn(conversation, first, emit, terminal))
    try:
        for line in lines_of_stdin(show_mark=terminal):
            turns.append(_turn(conversation, line, emit, terminal))
    except KeyboardInterrupt:
        if not terminal:
            raise
    if terminal:
        print(file=sys.stderr)
    return turns


def _turn(conversation: "Chat", text: str, emit: Any, terminal: bool) -> dict[str, Any]:
    from dsconv.runtime.command_line.signals import interrupt_as_flag

    if terminal:
        with interrupt_as_flag() as flag:
            reply = conversation.ask(text, emit, flag.is_set)
    else:
        reply = conversation.ask(text, emit)
    if emit is _emit:
        print(flush=True)
    return {"prompt": text, **reply.to_json()}


def _ignore(kind: "Kind", text: str) -> None:
    """With --json everything comes at the end."""


def _emit(kind: "Kind", text: str) -> None:
    """Thoughts go to stderr and the answer to stdout as they come."""
    file = sys.stderr if kind == "think" else sys.stdout
    dim = kind == "think" and file.isatty()
    print(f"\x1b[2m{text}\x1b[0m" if dim else text, end="", file=file, flush=True)


def show(reply: "Answer") -> None:
    """What comes after the text."""
    from dsconv.runtime.console import rate_text, say

    g, guesses, loaded = reply.generation, reply.speculation, reply.loaded
    guessed = f", {guesses.accepted} of {guesses.proposed} guesses right" if guesses else ""
    print()
    prefill = rate_text(g.prefill_tokens_per_second, "tokens")
    decode = rate_text(g.decode_tokens_per_second, "tokens")
    say(
        f"\n{len(g.tokens)} tokens ({g.stop_reason}), prefill {prefill}, decode {decode}, "
        f"{loaded.runtime} on {loaded.provider}{guessed}"
    )
    if loaded.placement:
        say(loaded.placement.words())
