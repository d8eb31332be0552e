"""dsconv.json: what an output was made from and by, with a hash of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import MANIFEST

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """Where the input came from: its name, its files' hashes."""

    name: str
    files: Mapping[str, str]


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file in `folder` except the manifest."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(
    folder: Path, kind: str, source: Provenance, recipe: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write the manifest of a finished folder. No time, host or path: same input, same bytes."""
    content = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "source": {"name": source.name, "sha256": dict(source.files)},
        "recipe": dict(recipe),
        "facts": dict(facts),
        "versions": {"dsconv": __version__},
        "sha256": hash_files(folder),
    }
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
