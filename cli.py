"""The command line: parse, call the library, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dsconv import __version__
from dsconv.cli_failures import exit_code_of
from dsconv.cli_options import (
    Activations,
    AllowFallback,
    Bits,
    Calibration,
    CalibrationTokens,
    EmbeddingBits,
    GroupSize,
    HeadBits,
    Json,
    Kv,
    MaxMemory,
    Method,
    Model,
    NoReferenceCache,
    Output,
    Overwrite,
    PrefixCorrection,
    Provider,
    ReferenceCache,
    SchemeName,
    Symmetric,
    TargetBits,
    Threads,
    TuningEpochs,
    quantize_options,
)
from dsconv.errors import VerdictFailed

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize, export, run and verify distilled LLM checkpoints.",
)


def _threads(count: int) -> int:
    return count or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 1])


def _given(context: typer.Context) -> list[str]:
    """Names of the parameters that stand on the command line."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]


def _print_json(content: dict[str, Any]) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(content, ensure_ascii=not is_utf8, indent=2))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dsconv {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: dsconv pull deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
def pull(
    model: Annotated[
        str, typer.Argument(help="org/model, org/model@revision, or hf://org/model/FILE.gguf")
    ],
    local_dir: Annotated[
        Path | None, typer.Option(help="Plain files in this folder (default: the hub's cache)")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="hub (HF_ENDPOINT chooses a mirror), or modelscope")
    ] = None,
    retries: Annotated[
        int, typer.Option(help="Failures in a row before giving up", min=0, max=20)
    ] = 6,
    as_json: Json = False,
) -> None:
    """Download a model at a pinned commit: resumes, verifies every byte."""
    from dsconv.runtime.pull_command import pull_command

    report = pull_command(model, source, local_dir, retries)
    _print_json(report.to_json()) if as_json else report.show()


@app.command(
    epilog="Example: dsconv quantize deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --bits 4 -o r1-int4"
)
def quantize(
    model: Model,
    output: Output,
    bits: Bits = 4,
    scheme: SchemeName = "integer",
    group_size: GroupSize = 32,
    symmetric: Symmetric = True,
    head_bits: HeadBits = None,
    embedding_bits: EmbeddingBits = None,
    activations: Activations = "float",
    method: Method = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = 32768,
    target_bpw: TargetBits = None,
    target_size: Annotated[
        str | None, typer.Option(help="The same: size of all weights, e.g. 1.2GB")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="The same: estimated mean KL in nats per token")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The same bits per matrix as an earlier run's dsconv.json")
    ] = None,
    prefix_correction: PrefixCorrection = None,
    damping: Annotated[float, typer.Option(help="Of gptq, share of the mean diagonal")] = 0.01,
    tuning_epochs: TuningEpochs = 0,
    max_memory: MaxMemory = "2GiB",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--no-keep",
            help="Keep what is downloaded, or fetch shards when needed and delete them after",
        ),
    ] = True,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Quantize a checkpoint to int4 or int8, calibrated, in bounded memory; resumes."""
    from dsconv.convert.quantization_plan import Target
    from dsconv.runtime.calibration import CalibrationOptions, CalibrationSource
    from dsconv.runtime.console import parse_size
    from dsconv.runtime.quantize_command import quantize_command

    chosen = partial(
        quantize_options,
        method=method,
        calibrates=bool(calibration) or (target_bpw or target_size or max_kl) is not None,
        bits=bits,
        scheme=scheme,
        activations=activations,
        embedding_bits=embedding_bits,
        prefix_correction=prefix_correction,
        max_memory=max_memory,
        group_size=group_size,
        symmetric=symmetric,
        head_bits=head_bits,
        threads=_threads(threads),
        damping=damping,
        tuning_epochs=tuning_epochs,
    )
    sources = tuple(map(CalibrationSource.parse, calibration or ()))
    texts = CalibrationOptions(sources, calibration_tokens)
    target = None
    if target_bpw is not None or target_size is not None or max_kl is not None:
        size = None if target_size is None else parse_size(target_size)
        target = Target(target_bpw, size, max_kl)
    report = quantize_command(model, chosen, output, overwrite, texts, target, recipe, keep)
    _print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv plan deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --method gptq")
def plan(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where it would be written")
    ] = Path("quantized"),
    bits: Bits = 4,
    scheme: SchemeName = "integer",
    group_size: GroupSize = 32,
    symmetric: Symmetric = True,
    head_bits: HeadBits = None,
    embedding_bits: EmbeddingBits = None,
    activations: Activations = "float",
    method: Method = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = 32768,
    target_bpw: TargetBits = None,
    prefix_correction: PrefixCorrection = None,
    tuning_epochs: TuningEpochs = 0,
    max_memory: MaxMemory = "2GiB",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Predict memory, disk and time of quantize on this machine; no weights are needed."""
    from dsconv.convert.quantization_plan import Target
    from dsconv.runtime.calibration import CalibrationOptions, CalibrationSource
    from dsconv.runtime.plan import predict

    chosen = partial(
        quantize_options,
        True,
        method=method,
        calibrates=bool(calibration) or target_bpw is not None,
        bits=bits,
        scheme=scheme,
        activations=activations,
        embedding_bits=embedding_bits,
        prefix_correction=prefix_correction,
        max_memory=max_memory,
        group_size=group_size,
        symmetric=symmetric,
        head_bits=head_bits,
        threads=_threads(threads),
        tuning_epochs=tuning_epochs,
    )
    sources = tuple(map(CalibrationSource.parse, calibration or ()))
    texts = CalibrationOptions(sources, calibration_tokens)
    target = None if target_bpw is None else Target(bits_per_weight=target_bpw)
    prediction = predict(model, chosen, output, texts, target)
    _print_json(prediction.to_json()) if as_json else prediction.show()


@app.command(epilog="Example: dsconv export r1-int4 --format onnx --target cpu -o r1-onnx")
def export(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write; gguf also FILE.gguf; native FILE.dsq"
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="onnx, gguf (llama.cpp), compressed-tensors (transformers, vLLM), or native "
            "(default: what the target takes)"
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="cpu, cuda, openvino, qnn, cann, … (dsconv targets)")
    ] = "cpu",
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Of a graph for --target cpu: contrib (ONNX Runtime's operators), std24, std21, "
            "std17 (standard) or std17-nbits"
        ),
    ] = None,
    accuracy_level: Annotated[
        int, typer.Option(help="4: int8 products, fast; 0: float32, exact")
    ] = 4,
    context_length: Annotated[
        int | None, typer.Option(help="Positions the graph allows (default: the model's)")
    ] = None,
    prefill_length: Annotated[
        int | None, typer.Option(help="Tokens per run of a prompt, for targets with fixed shapes")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy weights instead of linking")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint: for ONNX Runtime, llama.cpp, transformers, or the native engine."""
    from dsconv.runtime.export_commands import ExportRequest, export_command

    request = ExportRequest(
        format, target, dialect, accuracy_level, context_length, prefill_length, copy
    )
    report = export_command(model, request, output, overwrite)
    _print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv lint model.onnx --target qnn")
def lint(
    artifact: Annotated[Path, typer.Argument(help="A .onnx file, made by whomever, or its folder")],
    target: Annotated[str, typer.Option(help="Where it shall run (dsconv targets)")],
    as_json: Json = False,
) -> None:
    """Check a graph against what a target takes; exit code 1 when it would not run there."""
    from dsconv.runtime.target_commands import lint_command

    found = lint_command(artifact, target)
    _print_json(found.to_json()) if as_json else found.show()
    if not found.passed:
        raise VerdictFailed(found.summary, found.hint)


@app.command(epilog="Example: dsconv targets")
def targets(as_json: Json = False) -> None:
    """List where a model can run, what each place takes, and how sure that is."""
    from dsconv.runtime.target_commands import targets_command

    table = targets_command()
    _print_json(table.to_json()) if as_json else table.show()


@app.command(epilog='Example: dsconv run r1-onnx -p "How many primes are below 50?"')
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
    from dsconv.runtime.commands import run_command
    from dsconv.runtime.load import load

    loaded = load(artifact, provider, threads, dtype, kv, allow_fallback)
    overrides = (temperature, top_p, top_k, seed)
    reply = run_command(loaded, prompt, system, raw, max_tokens, overrides, not as_json, speculate)
    if as_json:
        _print_json(reply.to_json())


@app.command(
    epilog="Example: dsconv verify r1-onnx --reference deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
    "--max-kl 0.03 --min-top1 0.93"
)
def verify(
    context: typer.Context,
    artifact: Annotated[
        str, typer.Argument(help="Exported folder or .dsq file, in its own runtime")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="The model it was made from (only --integrity goes without)"),
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

    With --integrity and no --reference, only the hashes are recomputed.
    """
    if reference is None:
        from dsconv.runtime.integrity_command import integrity_command, refuse_without_reference

        refuse_without_reference(_given(context), integrity)
        found = integrity_command(artifact)
        _print_json(found.to_json()) if as_json else found.show()
        if not found.passed:
            raise VerdictFailed(found.summary, found.hint)
        return
    from dsconv.runtime.inspection import Inspections
    from dsconv.runtime.reference_cache import chosen_folder
    from dsconv.runtime.task import TaskOptions
    from dsconv.runtime.thresholds import from_options
    from dsconv.runtime.verify import VerifyOptions
    from dsconv.runtime.verify_command import (
        VerifyReport,
        VerifyRequest,
        refuse_unwritable,
        run_verify,
    )

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
        inspections=Inspections(layers, integrity, free_running, task, asked),
    )
    result = VerifyReport(run_verify(request))
    result.publish(junit, github, report)
    _print_json(result.to_json()) if as_json else result.show()
    if not result.verdict.passed:
        raise VerdictFailed("; ".join(result.failures), result.hint)


@app.command(
    epilog="Example: dsconv bench r1-onnx --against onnxruntime-genai --checkpoint "
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
    from dsconv.runtime.bench import BenchOptions
    from dsconv.runtime.bench_command import Against, bench_command

    contexts = {} if context is None else {"contexts": tuple(context)}
    chosen = BenchOptions(prefill, decode, rounds=rounds, max_foreign=max_foreign_load, **contexts)
    others = Against(tuple(against or ()), checkpoint, bits, peers)
    chosen_threads = _threads(threads)
    report = bench_command(artifacts, chosen_threads, provider, kv, others, chosen, allow_fallback)
    _print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv inspect r1-int4 --json")
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what is in a checkpoint, GGUF file or artifact: family, bits, sizes, tensors."""
    from dsconv.convert.inspect import describe
    from dsconv.runtime.commands import show_description

    description = describe(model)
    _print_json(description.to_json()) if as_json else show_description(description)


@app.command(epilog="Example: dsconv doctor openvino torch:cuda")
def doctor(
    targets: Annotated[
        list[str] | None, typer.Argument(help="native, providers, torch:DEVICE (default: all)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, what of it really works, and what would mend the rest."""
    from dsconv.runtime.doctor_command import doctor_command

    report = doctor_command(targets or [])
    _print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv demo")
def demo(
    keep: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the artifacts in this folder")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on a small real model, offline."""
    from dsconv.runtime.commands import demo_command, show_demo

    result = demo_command(keep, _threads(threads))
    _print_json(result.to_json()) if as_json else show_demo(result)
    if result.failures:
        raise VerdictFailed("; ".join(result.failures), "please report this with dsconv --version")


@app.command(epilog="Example: dsconv build r1-distill-qwen-1.5b-native-int4 -o r1")
def build(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe (dsconv recipes), or a TOML file")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write (default: the recipe's name)"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE instead of the recipe's, e.g. quantize.bits=8"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and do nothing")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Pull, quantize, export and verify as a recipe says; exit code 1 when a limit is not met."""
    from dsconv.runtime.build_command import build_command

    report = build_command(recipe, output, settings or [], dry_run, _threads(threads))
    _print_json(report.to_json()) if as_json else report.show()
    if not dry_run and not report.passed:
        raise VerdictFailed("; ".join(report.failures) or "verdict: failed", report.hint)


@app.command(epilog="Example: dsconv recipes --json")
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with dsconv."""
    from dsconv.runtime.build_command import recipes_command

    found = recipes_command()
    _print_json(found.to_json()) if as_json else found.show()


def main() -> None:
    """Entry point: run the command, turn every failure into an exit code."""
    from dsconv.runtime.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    command = typer.main.get_command(app)
    sys.exit(exit_code_of(lambda: command.main(prog_name="dsconv", standalone_mode=False)))


if __name__ == "__main__":
    main()
