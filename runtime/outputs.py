"""What a command checks of its output before any work."""

from __future__ import annotations

import os
from pathlib import Path

from dsconv.atomic import refuse_existing
from dsconv.errors import UsageError


def check_output(model: str, output: Path, overwrite: bool, single_file: bool = False) -> None:
    """Fail before any work: the output is taken, or replacing it would remove the input."""
    refuse_existing(output, overwrite, single_file)
    source = Path(model).expanduser().resolve()
    if os.path.exists(output) and output.resolve() in (source, *source.parents):
        raise UsageError(f"{output}: holds the input", "choose another folder with -o")
