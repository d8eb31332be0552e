"""`dsconv sign`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Overwrite, print_json

EXAMPLE = "dsconv sign r1-onnx --private-key key.pem"


def sign(
    artifact: Annotated[str, typer.Argument(help="Folder or file that dsconv wrote")],
    private_key: Annotated[Path, typer.Option(help="PEM file with an elliptic key")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Signature (default: ARTIFACT.sig)")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Sign an artifact in the format of OpenSSF model-signing, if it is whole."""
    from dsconv.runtime.console import say
    from dsconv.runtime.verify.findings.signature import sign_artifact

    report = sign_artifact(artifact, private_key, output, overwrite)
    if as_json:
        print_json(report.to_json())
    else:
        say(f"signed {report.files} files")
        print(report.signature)
