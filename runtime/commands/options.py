"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsconv.runtime.quantize_defaults import quantize_options as quantize_options

Model = Annotated[
    str,
    typer.Argument(
        help="Folder, .gguf file, or hub name (org/model, org/model@revision, hf://org/model/X.gguf)"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output, or an unfinished other run")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]
Threads = Annotated[int, typer.Option(help="Threads; 0 is one per core", min=0)]
Kv = Annotated[
    str, typer.Option("--kv", help="Keys and values of a .dsq: fp16, or int8 (half the memory)")
]
ReferenceCache = Annotated[
    Path | None,
    typer.Option(help="Folder of the reference's predictions (default: ~/.cache/dsconv)"),
]
NoReferenceCache = Annotated[
    bool, typer.Option("--no-reference-cache", help="Run the reference, and keep nothing of it")
]
Provider = Annotated[
    str,
    typer.Option(
        help="Execution provider: cpu, cuda, openvino, qnn, … (see doctor), with a device as "
        "cuda:1; for a checkpoint torch:cuda, torch:npu, …"
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option("--allow-fallback", help="The CPU runs what the provider leaves; shows how much"),
]
Bits = Annotated[int, typer.Option(help="Bits per weight: 4, 8; scale-min 3 to 6")]
SchemeName = Annotated[
    str, typer.Option("--scheme", help="integer (ONNX, vLLM, vendors) or scale-min (GGUF, native)")
]
GroupSize = Annotated[int, typer.Option(help="Weights per scale: 32, 64, 128, -1 = row")]
Symmetric = Annotated[
    bool, typer.Option("--symmetric/--asymmetric", help="Fixed or stored zero points")
]
HeadBits = Annotated[
    int | None, typer.Option(help="Bits of lm_head: 4, 8, 16 (default: as --bits)")
]
EmbeddingBits = Annotated[
    int | None,
    typer.Option(
        help="Bits of the token embedding: 4, 8, 16 = as it is (default: with gptq as --bits, one "
        "more with scale-min; else 16)"
    ),
]
Activations = Annotated[
    str, typer.Option(help="float, or int8 (with --bits 8): int8 products, as vLLM runs them")
]
Method = Annotated[
    str | None,
    typer.Option(
        help="gptq: calibrated, the default below 8 bits, and with --calibration, a target or int8 "
        "activations; search: least squares per group, minutes instead of an hour; rtn: to nearest"
    ),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        help="Text for gptq: self (the model writes it; the default) or FILE (text or .jsonl); "
        "several are mixed, self=2 or FILE=2 gives one twice the share"
    ),
]
CalibrationTokens = Annotated[int, typer.Option(help="Tokens to calibrate on")]
TargetBits = Annotated[
    float | None,
    typer.Option(help="Choose bits per matrix: this many per weight, over all parameters"),
]
PrefixCorrection = Annotated[
    float | None,
    typer.Option(
        help="0 to 1: how far gptq makes up for the error of earlier layers (default: 0.5; 0 at "
        "8 bits)"
    ),
]
TuningEpochs = Annotated[
    int,
    typer.Option(help="Then train the scales on the original's logits; needs the model in RAM"),
]
MaxMemory = Annotated[
    str, typer.Option(help="For activations and second moments; beyond it they go to disk")
]


def thread_count(count: int) -> int:
    return count or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 1])


def print_json(content: dict[str, Any]) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(content, ensure_ascii=not is_utf8, indent=2))
