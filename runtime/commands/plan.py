"""`dsconv plan`."""

from pathlib import Path
from typing import Annotated

import typer

from dsconv.runtime.option_fields import thread_count
from dsconv.runtime.quantize_request import QuantizeRequest

from .options import Json, Model, Threads, asking, print_json

EXAMPLE = "dsconv plan deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --method gptq"


@asking(QuantizeRequest, without=["damping"])  # which costs nothing
def plan(
    model: Model,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where it would be written")
    ] = Path("quantized"),
    request: QuantizeRequest,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Predict memory, disk and time of quantize on this machine; no weights are needed."""
    from dsconv.runtime.plan import predict

    prediction = predict(model, request, output, thread_count(threads))
    print_json(prediction.to_json()) if as_json else prediction.show()
