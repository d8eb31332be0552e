"""`dsconv quantize`."""

from typing import Annotated

import typer

from dsconv.runtime.option_fields import thread_count
from dsconv.runtime.quantize_request import QuantizeCommandRequest

from .options import Json, Model, Output, Overwrite, Threads, asking, print_json

EXAMPLE = "dsconv quantize deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --bits 4 -o r1-int4"


@asking(QuantizeCommandRequest)
def quantize(
    model: Model,
    output: Output,
    *,
    request: QuantizeCommandRequest,
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
    from dsconv.runtime.console import say
    from dsconv.runtime.quantize import quantize_model

    report = quantize_model(model, request, output, thread_count(threads), overwrite, keep)
    print_json(report.to_json()) if as_json else say(report.words())
