"""`dsconv plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsconv.runtime.option_fields import thread_count
from dsconv.runtime.quantize_request import QuantizeRequest

from .options import Json, Model, Threads, asking, print_json

if TYPE_CHECKING:
    from dsconv.runtime.plan import Prediction

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
    print_json(prediction.to_json()) if as_json else show(prediction)


def show(prediction: "Prediction") -> None:
    from rich.console import Console
    from rich.table import Table

    from dsconv.runtime.console import say, size_text, time_text

    cost, machine = prediction.cost, prediction.machine
    memory = size_text(machine.memory) if machine.memory else "unknown"
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("output", size_text(cost.output_bytes))
    table.add_row("scratch files", size_text(cost.scratch_bytes))
    table.add_row("free disk", size_text(machine.free_disk))
    table.add_row("peak memory", f"{size_text(cost.peak_bytes)} of {memory}")
    table.add_row("time", f"about {time_text(prediction.seconds)}")
    for step in prediction.steps:
        table.add_row(f"  {step.name}", time_text(step.seconds))
    Console().print(table)
    for problem in prediction.problems:
        say(f"does not fit: {problem.message}\nhint: {problem.hint}")
