"""`dsconv quantize`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import (
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

EXAMPLE = "dsconv quantize deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --bits 4 -o r1-int4"


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
    from dsconv.convert.quantize.options import BitsTarget
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
