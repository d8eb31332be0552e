"""`dsconv pull`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from dsconv.runtime.model_paths import PullReport

EXAMPLE = "dsconv pull deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def pull(
    model: Annotated[
        str, typer.Argument(help="org/model, org/model@revision, or hf://org/model/FILE.gguf")
    ],
    local_dir: Annotated[
        Path | None, typer.Option(help="Plain files in this folder (default: the hub's cache)")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="hub (HF_ENDPOINT chooses a mirror), or modelscope", metavar="hub|modelscope"
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(help="Failures in a row before giving up", min=0, max=20)
    ] = 6,
    as_json: Json = False,
) -> None:
    """Download a model at a pinned commit: resumes, verifies every byte."""
    from dsconv.runtime.model_paths import pull_model

    report = pull_model(model, source, local_dir, retries)
    print_json(report.to_json()) if as_json else show(report)


def show(report: "PullReport") -> None:
    from dsconv.runtime.console import detail, rate_text, say, size_text

    for file in report.files:
        detail(f"{file['name']}: {size_text(file['size_bytes'])}")
    rate = f" ({rate_text(report.fetched_bytes / max(report.seconds, 1e-9), 'B')})"
    fetched = size_text(report.fetched_bytes) + rate if report.fetched_bytes else "nothing"
    say(
        f"{report.name} at {report.commit[:12]}: {len(report.files)} files, "
        f"{size_text(report.size_bytes)}, every byte verified; fetched {fetched}"
    )
    print(report.path)
