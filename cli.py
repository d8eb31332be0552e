"""The command line: parse, call the library, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dsconv import __version__
from dsconv.errors import VerdictFailed
from dsconv.runtime.commands.artifacts import bench, run, sign, verify
from dsconv.runtime.commands.exit_codes import exit_code_of
from dsconv.runtime.commands.options import (
    Activations,
    Bits,
    Calibration,
    CalibrationTokens,
    EmbeddingBits,
    GroupSize,
    HeadBits,
    Json,
    MaxMemory,
    Method,
    Model,
    Output,
    Overwrite,
    PrefixCorrection,
    SchemeName,
    Symmetric,
    TargetBits,
    Threads,
    TuningEpochs,
    print_json,
    quantize_options,
    thread_count,
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize, export, run and verify distilled LLM checkpoints.",
)


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
    from dsconv.runtime.commands.pull import pull_command

    report = pull_command(model, source, local_dir, retries)
    print_json(report.to_json()) if as_json else report.show()


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
    from dsconv.convert.quantize.plan import BitsTarget
    from dsconv.runtime.calibration.text_windows import CalibrationOptions, CalibrationSource
    from dsconv.runtime.console import parse_size
    from dsconv.runtime.quantize import quantize_command

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
        threads=thread_count(threads),
        damping=damping,
        tuning_epochs=tuning_epochs,
    )
    sources = tuple(map(CalibrationSource.parse, calibration or ()))
    texts = CalibrationOptions(sources, calibration_tokens)
    target = None
    if target_bpw is not None or target_size is not None or max_kl is not None:
        size = None if target_size is None else parse_size(target_size)
        target = BitsTarget(target_bpw, size, max_kl)
    report = quantize_command(model, chosen, output, overwrite, texts, target, recipe, keep)
    print_json(report.to_json()) if as_json else report.show()


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
    from dsconv.convert.quantize.plan import BitsTarget
    from dsconv.runtime.calibration.text_windows import CalibrationOptions, CalibrationSource
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
        threads=thread_count(threads),
        tuning_epochs=tuning_epochs,
    )
    sources = tuple(map(CalibrationSource.parse, calibration or ()))
    texts = CalibrationOptions(sources, calibration_tokens)
    target = None if target_bpw is None else BitsTarget(bits_per_weight=target_bpw)
    prediction = predict(model, chosen, output, texts, target)
    print_json(prediction.to_json()) if as_json else prediction.show()


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
            help="onnx, native, gguf (llama.cpp), compressed-tensors (transformers, vLLM), ascend "
            "(vllm-ascend, MindIE) (default: what the target takes)"
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
    from dsconv.runtime.export import ExportRequest, export_command

    request = ExportRequest(
        format, target, dialect, accuracy_level, context_length, prefill_length, copy
    )
    report = export_command(model, request, output, overwrite)
    print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv lint model.onnx --target qnn")
def lint(
    artifact: Annotated[Path, typer.Argument(help="A .onnx file, made by whomever, or its folder")],
    target: Annotated[str, typer.Option(help="Where it shall run (dsconv targets)")],
    as_json: Json = False,
) -> None:
    """Check a graph against what a target takes; exit code 1 when it would not run there."""
    from dsconv.runtime.commands.targets import lint_command

    found = lint_command(artifact, target)
    print_json(found.to_json()) if as_json else found.show()
    if not found.passed:
        raise VerdictFailed(found.summary, found.hint)


@app.command(epilog="Example: dsconv targets")
def targets(as_json: Json = False) -> None:
    """List where a model can run, what each place takes, and how sure that is."""
    from dsconv.runtime.commands.targets import targets_command

    table = targets_command()
    print_json(table.to_json()) if as_json else table.show()


app.command(epilog='Example: dsconv run r1-onnx -p "How many primes are below 50?"')(run)
app.command(
    epilog="Example: dsconv verify r1-onnx --reference deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
    "--max-kl 0.03 --min-top1 0.93"
)(verify)
app.command(epilog="Example: dsconv sign r1-onnx --private-key key.pem")(sign)
app.command(
    epilog="Example: dsconv bench r1-onnx --against onnxruntime-genai --checkpoint "
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
)(bench)


@app.command(epilog="Example: dsconv inspect r1-int4 --json")
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what is in a checkpoint, GGUF file or artifact: family, bits, sizes, tensors."""
    from dsconv.convert.inspect import describe
    from dsconv.runtime.commands.run import show_description

    description = describe(model)
    print_json(description.to_json()) if as_json else show_description(description)


@app.command(epilog="Example: dsconv doctor openvino torch:cuda")
def doctor(
    targets: Annotated[
        list[str] | None, typer.Argument(help="native, providers, torch:DEVICE (default: all)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, what of it really works, and what would mend the rest."""
    from dsconv.runtime.commands.doctor import doctor_command

    report = doctor_command(targets or [])
    print_json(report.to_json()) if as_json else report.show()


@app.command(epilog="Example: dsconv demo")
def demo(
    keep: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the artifacts in this folder")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on a small real model, offline."""
    from dsconv.runtime.commands.run import demo_command, show_demo

    result = demo_command(keep, thread_count(threads))
    print_json(result.to_json()) if as_json else show_demo(result)
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
    from dsconv.runtime.commands.build import build_command

    report = build_command(recipe, output, settings or [], dry_run, thread_count(threads))
    print_json(report.to_json()) if as_json else report.show()
    if not dry_run and not report.passed:
        raise VerdictFailed("; ".join(report.failures) or "verdict: failed", report.hint)


@app.command(epilog="Example: dsconv recipes --json")
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with dsconv."""
    from dsconv.runtime.commands.build import recipes_command

    found = recipes_command()
    print_json(found.to_json()) if as_json else found.show()


def main() -> None:
    """Entry point: run the command, turn every failure into an exit code."""
    from dsconv.runtime.sessions.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    command = typer.main.get_command(app)
    sys.exit(exit_code_of(lambda: command.main(prog_name="dsconv", standalone_mode=False)))


if __name__ == "__main__":
    main()
