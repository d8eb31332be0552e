"""`dsconv bench`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AllowFallback, Json, Kv, Provider, Threads, print_json, thread_count

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
    rounds: Annotated[int, typer.Option(help="Rounds over all artifacts")] = 5,
    max_foreign_load: Annotated[
        float, typer.Option(help="Share of the machine that others may use in a round")
    ] = 0.1,
    against: Annotated[
        list[str] | None, typer.Option(help="llama.cpp, onnxruntime-genai, openvino; several")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Unquantized model that --against quantizes for itself")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of what --against makes: 4 or 8")] = 4,
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
    from dsconv.runtime.bench.bench import BenchOptions

    contexts = {} if context is None else {"contexts": tuple(context)}
    request = BenchRequest(
        tuple(artifacts),
        thread_count(threads),
        BenchOptions(prefill, decode, rounds=rounds, max_foreign=max_foreign_load, **contexts),
        Against(tuple(against or ()), checkpoint, bits, peers),
        provider=provider,
        allow_fallback=allow_fallback,
        kv=kv,
    )
    report = bench_artifacts(request)
    print_json(report.to_json()) if as_json else report.show()
