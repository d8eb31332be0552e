"""What run, verify, inspect and demo do between parsing and printing, and their tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.checkpoint import generation_config
from ..convert.inspect import Description
from .console import progress, say, size_text
from .load import Loaded, load
from .run import Answer, answer
from .sampling import from_generation_config
from .thinking import Kind
from .verify import Verdict, VerifyOptions, plan_windows, read_text
from .verify import verify as verify_sessions

if TYPE_CHECKING:
    from .demo import DemoResult

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


@dataclass(frozen=True)
class VerifyReport:
    verdict: Verdict
    artifact: str
    reference: str

    hint = "calibrate, use smaller groups or more bits (--head-bits 8, --bits 8)"

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        s, o = self.verdict.summary, self.verdict.options
        noise = self.verdict.noise_kl
        table = Table(title=f"{self.artifact} against {self.reference}", title_justify="left")
        for column in ("figure", "value", "threshold"):
            table.add_column(column, justify="left" if column == "figure" else "right")
        kl_limit = "" if o.max_kl is None else f"≤ {o.max_kl:g}"
        top1_limit = "" if o.min_top1 is None else f"≥ {o.min_top1:g}"
        table.add_row("mean KL, nats per token", f"{s.kl_mean:.5f} ± {s.kl_stderr:.5f}", kl_limit)
        table.add_row("median, p99, max", f"{s.kl_median:.5f}, {s.kl_p99:.4f}, {s.kl_max:.3f}")
        if noise is not None:
            table.add_row("noise floor (bfloat16 against float32)", f"{noise:.5f}")
        table.add_row("top-1 agreement", f"{s.top1_agreement:.4f}", top1_limit)
        table.add_row("perplexity of the reference", f"{s.reference_perplexity:.4f}")
        ratio = s.artifact_perplexity / s.reference_perplexity
        table.add_row("perplexity of the artifact", f"{s.artifact_perplexity:.4f} (× {ratio:.4f})")
        table.add_row("tokens", str(s.tokens))
        table.add_row("runtime", f"{self.verdict.runtime} on {self.verdict.provider}")
        Console().print(table)
        print("verdict: passed" if self.verdict.passed else "verdict: failed")


def verify_command(
    artifact: str,
    reference: str,
    text: Path | None,
    options: VerifyOptions,
    provider: str,
    dtype: str,
    threads: int,
    kv: str,
    allow_fallback: bool = False,
) -> VerifyReport:
    content = read_text(text)
    tested = load(artifact, provider, threads, kv=kv, allow_fallback=allow_fallback)
    if tested.placement and allow_fallback:
        say(tested.placement.words())
    judge = load(reference, "cpu", threads, dtype)
    total = sum(map(len, plan_windows(tested, judge, content, options)))
    with progress("verify", total, "tokens") as advance:
        verdict = verify_sessions(tested, judge, content, options, advance)
    return VerifyReport(verdict, artifact, reference)


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
    from .demo import run_demo  # the exporters: most of a second that other commands save

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
