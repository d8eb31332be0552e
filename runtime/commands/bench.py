"""`dsconv bench`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsconv.runtime.command_line import completion
from dsconv.runtime.option_fields import thread_count

from .options import AllowFallback, Json, Kv, Provider, Threads, print_json

if TYPE_CHECKING:
    from dsconv.runtime.bench.report import Artifact, BatchDecode, BenchReport, Figures

LONGEST_NUMBER = 9  # digits
EXAMPLE = (
    "dsconv bench r1-onnx --against onnxruntime-genai --checkpoint "
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
)


def bench(
    artifacts: Annotated[list[str], typer.Argument(help="Exported folders, files, checkpoints")],
    prefill: Annotated[int, typer.Option(help="Tokens of the prompt")] = 512,
    decode: Annotated[int, typer.Option(help="Tokens of a burst of decoding")] = 64,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Tokens before the burst; several (default: 0, 2048, 8192 that fit)"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Sequences at once, as in 1,4,16: tokens/s of all together",
            metavar="N,N,…",
        ),
    ] = None,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            help="Keys and values of --batch in our artifacts, as 4GiB (default: half of what is "
            "free)"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds over all artifacts")] = 5,
    max_foreign_load: Annotated[
        float, typer.Option(help="Share of the machine that others may use in a round")
    ] = 0.1,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another runtime, on its own quantization; several",
            metavar="|".join(completion.PEERS),
            autocompletion=completion.one_of(completion.PEERS),
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Unquantized model that --against quantizes for itself")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of what --against makes", metavar="4|8")] = 4,
    peers: Annotated[
        Path | None, typer.Option(help="Folder that keeps what --against makes, for the next time")
    ] = None,
    provider: Provider = "cpu",
    allow_fallback: AllowFallback = False,
    threads: Threads = 0,
    kv: Kv = "fp16",
    as_json: Json = False,
) -> None:
    """Measure speed, memory and load time of artifacts side by side, each in its own process."""
    from dsconv.runtime.bench.against import Against, BenchRequest, bench_artifacts
    from dsconv.runtime.bench.bench import options_of
    from dsconv.runtime.console import parse_size

    request = BenchRequest(
        tuple(artifacts),
        thread_count(threads),
        options_of((prefill, decode), context, rounds, max_foreign_load, _sizes(batch)),
        Against(tuple(against or ()), checkpoint, bits, peers),
        provider=provider,
        allow_fallback=allow_fallback,
        kv=kv,
        cache_bytes=parse_size(cache_memory) if cache_memory is not None else 0,
    )
    report = bench_artifacts(request)
    print_json(report.to_json()) if as_json else show(report)


def _sizes(text: str | None) -> tuple[int, ...]:
    """`1,4,16` as numbers."""
    from dsconv.errors import UsageError

    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) <= LONGEST_NUMBER for word in words):
        raise UsageError(
            f"--batch: {text[:60]!r} is no list of numbers of sequences", "write --batch 1,4,16"
        )
    return tuple(int(word) for word in words)


def show(report: "BenchReport") -> None:
    from rich.console import Console
    from rich.table import Table

    from dsconv.runtime.console import rate_text

    table = Table(title="median, quartiles, and the rounds", title_justify="left")
    table.add_column("")
    for artifact in report.artifacts:
        name = f"{artifact.path}\n{artifact.runtime}, {artifact.threads} threads"
        table.add_column(name, justify="right", overflow="fold")
    for title, cells in _rows(report):
        table.add_row(title, *cells)
    Console().print(table)
    for artifact in report.artifacts:
        for each in artifact.left_out:
            print(f"{artifact.path}: {each.batch} at once left out: {each.reason}")
    low, high = (rate_text(value, "B") for value in report.bandwidth.quartiles)
    middle = rate_text(report.bandwidth.median, "B")
    print(f"read bandwidth {middle}, quartiles {low} to {high}")
    if report.foreign.values:
        print(
            f"others used {report.foreign.median:.0%} of the machine (at most "
            f"{max(report.foreign.values):.0%}); {report.discarded_rounds} rounds thrown away"
        )
    if report.is_disturbed:
        print(
            f"warning: too few rounds with less than {report.max_foreign:.0%}; compare the "
            "columns with each other, not with other runs"
        )


def _rows(report: "BenchReport") -> Iterator[tuple[str, list[str]]]:
    from dsconv.runtime.console import size_text

    every = report.artifacts
    tokens = every[0].prefill_tokens
    yield "load, s", [_cell(a.load_seconds, "{:.3g}") for a in every]
    yield f"first of {tokens}, s", [_cell(a.first_token_seconds, "{:.3g}") for a in every]
    yield f"prefill {tokens}, first, tokens/s", [_cell(a.cold_prefill) for a in every]
    yield f"prefill {tokens}, tokens/s", [_cell(a.prefill) for a in every]
    for context in sorted({d.context for a in every for d in a.decodes}):
        found = [next((d for d in a.decodes if d.context == context), None) for a in every]
        yield (
            f"decode at {context}, tokens/s",
            [_cell(d.rate) if d else "-" for d in found],
        )
        yield (
            "  of the bandwidth",
            [f"{d.fraction.median:.0%}" if d else "-" for d in found],
        )
    for size, context in sorted({(b.batch, b.context) for a in every for b in a.batches}):
        pairs = [_batch_of(a, size, context) for a in every]
        yield (
            f"{size} at once at {context}, tokens/s",
            [_cell(found.rate) if found else "-" for found in pairs],
        )
        yield "  times one alone", [_times_alone(a, size, context) for a in every]
    yield "weights per token", [size_text(a.weight_bytes_per_token) for a in every]
    yield "peak memory", [size_text(a.peak_rss_bytes) for a in every]
    if any(a.placement for a in every):
        yield "nodes (of the time)", ["\n".join(map(_share, a.placement)) for a in every]


def _batch_of(artifact: "Artifact", size: int, context: int) -> "BatchDecode | None":
    found = (b for b in artifact.batches if (b.batch, b.context) == (size, context))
    return next(found, None)


def _times_alone(artifact: "Artifact", size: int, context: int) -> str:
    found, alone = (_batch_of(artifact, each, context) for each in (size, 1))
    return f"{found.rate.median / alone.rate.median:.2f}" if found and alone else "-"


def _share(share: Mapping[str, Any]) -> str:
    time = "" if share["time_share"] is None else f" ({share['time_share']:.0%})"
    return f"{share['provider'].removesuffix('ExecutionProvider')} {share['node_share']:.0%}{time}"


def _cell(figures: "Figures", form: str = "{:.1f}") -> str:
    return f"{form.format(figures.median)}\n{_spread(figures, form)}"


def _spread(figures: "Figures", form: str = "{:.3g}") -> str:
    from dsconv.runtime.console import sparkline

    low, high = (form.format(value) for value in figures.quartiles)
    return f"{low}–{high} {sparkline(figures.shares)}"
