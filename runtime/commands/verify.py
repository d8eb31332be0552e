"""`dsconv verify`."""

from pathlib import Path
from typing import Annotated

import typer

from dsconv.errors import VerdictFailed

from .options import (
    AllowFallback,
    Json,
    Kv,
    NoReferenceCache,
    Provider,
    ReferenceCache,
    Threads,
    print_json,
)

EXAMPLE = (
    "dsconv verify r1-onnx --reference deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
    "--max-kl 0.03 --min-top1 0.93"
)


def verify(
    context: typer.Context,
    artifact: Annotated[
        str, typer.Argument(help="Exported folder or .dsq file, in its own runtime")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="The model it was made from (--integrity and --signature go without one)"
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text to verify on (default: built-in)")] = None,
    max_kl: Annotated[float | None, typer.Option(help="Mean KL per token, nats")] = None,
    max_kl_p99: Annotated[float | None, typer.Option(help="KL of the 99th of 100 tokens")] = None,
    min_top1: Annotated[float | None, typer.Option(help="Share of equal top tokens")] = None,
    max_ppl_ratio: Annotated[
        float | None, typer.Option(help="Perplexity over that of the reference")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Decoding speed over that of the reference")
    ] = None,
    max_probability_shift: Annotated[
        float | None, typer.Option(help="Share of tokens whose probability changes by over 0.1")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier --json output that must not be undercut")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens per window")] = 512,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the text to use")] = 8192,
    reference_cache: ReferenceCache = None,
    no_reference_cache: NoReferenceCache = False,
    layers: Annotated[
        bool | None,
        typer.Option(
            "--layers/--no-layers",
            help="Compare weights layer by layer (default: where it is possible)",
        ),
    ] = None,
    integrity: Annotated[
        bool, typer.Option("--integrity", help="Recompute every hash of the artifact")
    ] = False,
    signature: Annotated[
        Path | None, typer.Option(help="Check this signature of it (dsconv sign, model-signing)")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file with the key of whoever must have signed")
    ] = None,
    free_running: Annotated[
        int, typer.Option(help="Prompts that both models answer freely, greedily", min=0)
    ] = 0,
    task: Annotated[
        Path | None, typer.Option(help="Questions with answers (jsonl, as GSM8K): exact match")
    ] = None,
    task_questions: Annotated[int, typer.Option(help="Questions of the task to ask")] = 50,
    task_seeds: Annotated[int, typer.Option(help="Answers per question")] = 3,
    task_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most")] = 4096,
    report: Annotated[Path | None, typer.Option(help="Write a page (HTML) to this file")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Annotations and step summary for GitHub Actions")
    ] = False,
    provider: Provider = "cpu",
    allow_fallback: AllowFallback = False,
    dtype: Annotated[str, typer.Option(help="Reference: float32 or bfloat16")] = "float32",
    threads: Threads = 0,
    kv: Kv = "fp16",
    as_json: Json = False,
) -> None:
    """Compare an artifact with its model; exit code 1 when a threshold is not met.

    With --integrity or --signature and no --reference, only the files are looked at.
    """
    from dsconv.runtime.verify.findings.signature import signature_of

    signed = signature_of(signature, public_key)
    if reference is None:
        from dsconv.runtime.commands.integrity import integrity_command, refuse_without_reference

        refuse_without_reference(_given(context), integrity)
        found = integrity_command(artifact, signed)
        print_json(found.to_json()) if as_json else found.show()
        if not found.passed:
            raise VerdictFailed(found.summary, found.hint)
        return
    from dsconv.runtime.verify.checks import WantedChecks
    from dsconv.runtime.verify.measure import VerifyOptions
    from dsconv.runtime.verify.reference_cache import chosen_folder
    from dsconv.runtime.verify.run import (
        VerifyReport,
        VerifyRequest,
        refuse_unwritable,
        run_verify,
    )
    from dsconv.runtime.verify.task import TaskOptions
    from dsconv.runtime.verify.thresholds import from_options

    refuse_unwritable(report, junit)
    limits = from_options(
        {
            "max_kl": max_kl,
            "max_kl_p99": max_kl_p99,
            "min_top1": min_top1,
            "max_ppl_ratio": max_ppl_ratio,
            "max_probability_shift": max_probability_shift,
            "min_speedup": min_speedup,
        }
    )
    asked = TaskOptions(task_questions, task_seeds, task_tokens)
    request = VerifyRequest(
        artifact,
        reference,
        text,
        VerifyOptions(window, max_tokens),
        limits,
        baseline=baseline,
        cache=chosen_folder(reference_cache, no_reference_cache),
        provider=provider,
        allow_fallback=allow_fallback,
        dtype=dtype,
        threads=threads,
        kv=kv,
        settings=Path(),
        checks=WantedChecks(layers, integrity, free_running, task, asked, signature=signed),
    )
    result = VerifyReport(run_verify(request))
    result.publish(junit, github, report)
    print_json(result.to_json()) if as_json else result.show()
    if not result.verdict.passed:
        raise VerdictFailed("; ".join(result.failures), result.hint)


def _given(context: typer.Context) -> list[str]:
    """Names of the parameters that stand on the command line."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]
