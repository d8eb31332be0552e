"""`dsconv verify`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dsconv.errors import OutputError, UsageError, VerdictFailed

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

if TYPE_CHECKING:
    from dsconv.runtime.verify.findings.signature import Signature
    from dsconv.runtime.verify.run import VerifyRequest
    from dsconv.runtime.verify.verdict import LayerError, Verdict

EXAMPLE = (
    "dsconv verify r1-onnx --reference deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
    "--max-kl 0.03 --min-top1 0.93"
)
WITHOUT_REFERENCE = {  # parameters
    *("artifact", "integrity", "signature", "public_key"),
    *("as_json", "quiet", "verbose"),
}


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
    min_accuracy: Annotated[
        float | None, typer.Option(help="Share of a task's questions answered rightly")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Accuracy below that of the reference")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Decoding speed over that of the reference")
    ] = None,
    max_probability_shift: Annotated[
        float | None, typer.Option(help="Share of tokens whose probability changes by over 0.1")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier --json output: the artifact must not be worse")
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
        Path | None, typer.Option(help="PEM file with the public key of the signer")
    ] = None,
    free_running: Annotated[
        int, typer.Option(help="Prompts that both models answer freely, greedily", min=0)
    ] = 0,
    task: Annotated[
        list[Path] | None,
        typer.Option(help="Questions with answers (as GSM8K, MATH, MMLU, C-Eval); repeatable"),
    ] = None,
    task_questions: Annotated[int, typer.Option(help="Questions of the task to ask")] = 50,
    task_seeds: Annotated[int, typer.Option(help="Answers per question")] = 3,
    task_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most")] = 4096,
    task_shots: Annotated[
        int, typer.Option(help="Worked examples before each question", min=0)
    ] = 0,
    task_shots_from: Annotated[
        Path | None, typer.Option(help="File of the examples (default: the task's first rows)")
    ] = None,
    parallel: Annotated[
        int, typer.Option(help="Answers at once (default: as the runtime takes)", min=0)
    ] = 0,
    draft: Annotated[
        str | None,
        typer.Option(help="A smaller artifact of the same tokens guesses in the tasks"),
    ] = None,
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
        look_at_files(artifact, signed, integrity, _given(context), as_json)
        return
    from dsconv.runtime.verify.checks import WantedChecks
    from dsconv.runtime.verify.measure import VerifyOptions
    from dsconv.runtime.verify.reference_cache import chosen_folder
    from dsconv.runtime.verify.run import VerifyRequest
    from dsconv.runtime.verify.tasks.ask import TaskOptions
    from dsconv.runtime.verify.thresholds import from_options

    _refuse_unwritable(report, junit)
    limits = {
        "max_kl": max_kl,
        "max_kl_p99": max_kl_p99,
        "min_top1": min_top1,
        "max_ppl_ratio": max_ppl_ratio,
        "max_probability_shift": max_probability_shift,
        "min_accuracy": min_accuracy,
        "max_accuracy_drop": max_accuracy_drop,
        "min_speedup": min_speedup,
    }
    thresholds = from_options(limits)
    asked = TaskOptions(task_questions, task_seeds, task_tokens, parallel, task_shots)
    tasks = tuple(task or ())
    request = VerifyRequest(
        artifact,
        reference,
        text,
        VerifyOptions(window, max_tokens),
        thresholds,
        baseline=baseline,
        cache=chosen_folder(reference_cache, no_reference_cache),
        provider=provider,
        allow_fallback=allow_fallback,
        dtype=dtype,
        threads=threads,
        kv=kv,
        settings=Path(),
        checks=WantedChecks(
            layers, integrity, free_running, tasks, task_shots_from, asked, signature=signed
        ),
        draft=draft,
    )
    compare(request, Publication(report, junit, github), as_json)


def look_at_files(
    artifact: str, signed: "Signature | None", integrity: bool, given: list[str], as_json: bool
) -> None:
    """Hashes and signature, nothing else. given: names of the parameters on the command line."""
    from dsconv.runtime.console import say
    from dsconv.runtime.verify.files import check_files

    _refuse_without_reference(given, integrity)
    found = check_files(artifact, signed)
    if as_json:
        print_json(found.to_json())
    else:
        for finding in found.findings:
            say(f"{finding.place}: {finding.message}")
        print(f"{found.what}: {'passed' if found.passed else 'failed'}")
    if not found.passed:
        raise VerdictFailed(found.summary, found.hint)


def _refuse_without_reference(given: list[str], integrity: bool) -> None:
    """given: names of the parameters on the command line.

    Raises:
        UsageError: one of them compares with a model.
    """
    if not integrity and "signature" not in given:
        raise UsageError(
            "missing option --reference",
            "name the model it was made from; only --integrity and --signature go without one",
        )
    others = sorted(set(given) - WITHOUT_REFERENCE)
    if others:
        option = others[0].replace("_", "-")
        raise UsageError(f"--{option} without --reference", "add the model it was made from")


class Publication(NamedTuple):
    """Files for people and CI systems, beside what is printed."""

    page: Path | None
    junit: Path | None
    github: bool


def compare(request: "VerifyRequest", publication: Publication, as_json: bool) -> None:
    """With the model that it was made from, by everything that the request asks for."""
    from dsconv.runtime.verify.cures import cure
    from dsconv.runtime.verify.judge import failures
    from dsconv.runtime.verify.run import run_verify
    from dsconv.runtime.verify.verdict_json import to_json

    verdict = run_verify(request)
    publish(verdict, publication)
    print_json(to_json(verdict)) if as_json else show(verdict)
    if not verdict.passed:
        raise VerdictFailed("; ".join(failures(verdict)), cure(verdict))


def publish(verdict: "Verdict", publication: Publication) -> None:
    """Raises OutputError: a file cannot be written."""
    from dsconv.runtime.report.github_annotations import append_step_summary, error_annotations
    from dsconv.runtime.report.junit import write_junit

    if publication.page is not None:
        from dsconv.runtime.report.page import write_report

        write_report(verdict, publication.page)
    if publication.junit is not None:
        write_junit(publication.junit, verdict)
    if publication.github:
        for line in error_annotations(verdict):
            print(line, file=sys.stderr)  # for GitHub to read, and no note
        append_step_summary(verdict, os.environ)


def show(verdict: "Verdict") -> None:
    from rich.console import Console

    from dsconv.runtime.report.terminal import show_verdict

    for layer in verdict.layers:
        _tell_layer(layer)
    show_verdict(verdict, Console())
    print("verdict: passed" if verdict.passed else "verdict: failed")


def _tell_layer(layer: "LayerError") -> None:
    """With --verbose: signal over noise of its output, and of the weights of its matrices."""
    from dsconv.runtime.console import detail

    detail(f"{layer.name}: output {layer.sqnr_db:.1f} dB, cosine {layer.cosine:.5f}")
    for name, value in layer.matrices.items():
        detail(f"  {name}: {'exact' if value is None else f'{value:.1f} dB'}")


def _refuse_unwritable(*files: Path | None) -> None:
    """Before hours of measuring. Raises OutputError: a file has no folder to lie in."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise OutputError(
                f"{file}: there is no folder {str(file.parent)!r}", "make it, or use another path"
            )


def _given(context: typer.Context) -> list[str]:
    """Names of the parameters that stand on the command line."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]
