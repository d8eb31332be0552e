"""What dsconv writes: made quickly, and compared by its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.hashes import sha256_file
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint


def quantized(source: Path, output: Path, **options: Any) -> Checkpoint:
    """Quantize `source` into `output` and open the result."""
    quantize_checkpoint(open_checkpoint(str(source)), QuantizeOptions(**options), output)
    return open_checkpoint(str(output))


def folder_hash(folder: Path) -> str:
    """One digest over names and bytes of everything in the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"")
    return digest.hexdigest()


def digest(path: Path) -> str | None:
    """Of a file, or of names and bytes of a folder; None for nothing."""
    if path.is_dir():
        return folder_hash(path)
    return sha256_file(path) if path.exists() else None
