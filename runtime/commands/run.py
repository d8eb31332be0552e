"""What run, inspect and demo do between parsing and printing, and their tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsconv.convert.checkpoint.checkpoint import generation_config
from dsconv.convert.inspect import Description
from dsconv.runtime.console import progress, say, size_text
from dsconv.runtime.generate.answer import Answer, answer
from dsconv.runtime.generate.sampling import from_generation_config
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.thinking import Kind

if TYPE_CHECKING:
    from dsconv.runtime.demo import DemoResult

Overrides = tuple["float | None", "float | None", "int | None", "int | None"]


def run_command(
    loaded: Loaded,
    prompt: str,
    system: str | None,
    raw: bool,
    max_tokens: int,
    overrides: Overrides,
    stream: bool,
    speculate: int = 0,
) -> Answer:
    """Generate; with `stream`, thoughts go to stderr and the answer to stdout as they come."""
    defaults = from_generation_config(generation_config(loaded.side_files))
    sampling = defaults.with_overrides(*overrides)

    def emit(kind: Kind, text: str) -> None:
        file = sys.stderr if kind == "think" else sys.stdout
        dim = kind == "think" and file.isatty()
        print(f"\x1b[2m{text}\x1b[0m" if dim else text, end="", file=file, flush=True)

    show = emit if stream else lambda kind, text: None
    reply = answer(loaded, prompt, sampling, max_tokens, system, raw, show, speculate)
    if stream:
        g, guesses = reply.generation, reply.speculation
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
    return reply


def show_description(description: Description) -> None:
    from rich.console import Console
    from rich.table import Table

    d = description
    table = Table(
        title=f"{d.kind}, family {d.family}: {d.parameters:,} parameters, "
        f"{d.bits_per_weight:.2f} bits per weight, {size_text(d.size_bytes)}",
        title_justify="left",
    )
    for column, justify in (("tensor", "left"), ("shape", "right"), ("stored", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    for row in d.tensors:
        shape = " × ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.storage, f"{row.size_bytes:,}")
    Console().print(table)


def demo_command(keep: Path | None, threads: int) -> DemoResult:
    from dsconv.runtime.demo import (
        run_demo,  # the exporters: most of a second that other commands save
    )

    return run_demo(progress, say, keep, threads)


def show_demo(result: DemoResult) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"SmolLM2-135M-Instruct, {result.seconds:.0f} s in all"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("size", "bits", "KL", "top-1", "ppl", "tokens/s", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        verdict = row.verdict
        summary = verdict.summary if verdict else None
        table.add_row(
            row.name,
            size_text(row.size_bytes),
            f"{row.bits_per_weight:.2f}",
            f"{summary.kl_mean:.4f}" if summary else "",
            f"{summary.top1_agreement:.3f}" if summary else "",
            f"{row.perplexity:.2f}",
            f"{row.decode_tokens_per_second:.0f}",
            ("passed" if verdict.passed else "failed") if verdict else "",
        )
    Console().print(table)
