"""`dsconv demo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsconv.errors import VerdictFailed
from dsconv.runtime.option_fields import thread_count

from .options import Json, Threads, print_json

if TYPE_CHECKING:
    from dsconv.runtime.demo.run import DemoResult

EXAMPLE = "dsconv demo"


def demo(
    keep: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the artifacts in this folder")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on a small real model, offline."""
    from dsconv.runtime.console import say
    from dsconv.runtime.demo.run import run_demo

    result = run_demo(say, keep, thread_count(threads))
    print_json(result.to_json()) if as_json else show(result)
    if result.failures:
        raise VerdictFailed("; ".join(result.failures), "please report this with dsconv --version")


def show(result: "DemoResult") -> None:
    from rich.console import Console
    from rich.table import Table

    from dsconv.runtime.console import size_text

    title = f"SmolLM2-135M-Instruct, {result.seconds:.0f} s in all"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("size", "bits", "KL", "top-1", "ppl", "tok/s", "verdict"):
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
            f"{verdict.grade}, {'passed' if verdict.passed else 'failed'}" if verdict else "",
        )
    Console().print(table)
