"""`dsconv export`."""

from pathlib import Path
from typing import Annotated

import typer

from dsconv.runtime.command_line import completion

from .options import Json, Model, Overwrite, print_json

EXAMPLE = "dsconv export r1-int4 --format onnx --target cpu -o r1-onnx"


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
            "(vllm-ascend, MindIE) (default: what the target takes)",
            metavar="|".join(completion.FORMATS),
            autocompletion=completion.formats,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="cpu, cuda, tensorrt, openvino, openvino-npu, qnn, webgpu, migraphx, cann, musa, "
            "torch:npu, … or a vendor (dsconv targets)",
            metavar="TARGET",
            autocompletion=completion.targets,
        ),
    ] = "cpu",
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Of a graph for --target cpu: contrib (ONNX Runtime's operators), std24, std21, "
            "std17 (standard) or std17-nbits",
            metavar="|".join(completion.DIALECTS),
            autocompletion=completion.one_of(completion.DIALECTS),
        ),
    ] = None,
    accuracy_level: Annotated[
        int, typer.Option(help="4: int8 products, fast; 0: float32, exact", metavar="0|1|2|3|4")
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
    from dsconv.runtime.console import detail, say, size_text
    from dsconv.runtime.export import ExportRequest, export_model

    request = ExportRequest(
        format, target, dialect, accuracy_level, context_length, prefill_length, copy
    )
    report = export_model(model, request, output, overwrite)
    for name in report.files or ():
        detail(f"{name}: {size_text((output / name).stat().st_size)}")
    print_json(report.to_json()) if as_json else say(report.words())
