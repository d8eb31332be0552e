"""`dsconv plan`."""

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

EXAMPLE = "dsconv plan deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --method gptq"


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
    from dsconv.convert.quantize.options import BitsTarget
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
