"""dsconv.json: what an output was made from and by, with a hash of every file.

`tensors` holds one hash per tensor of every safetensors file too, so that damage can be named; and
`self_sha256` that of the manifest's own text with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsconv import __version__
from dsconv.atomic import MANIFEST
from dsconv.convert.files.hashes import HASH_PLACEHOLDER, FileHashes, artifact_files
from dsconv.convert.files.safetensors import read_rows, read_tensor_infos

from .provenance import Provenance

FORMAT_VERSION = 2
SELF_HASH = "self_sha256"
HASHED_BYTES = 1 << 22  # read at a time


def hash_files(folder: Path, hashes: FileHashes | None = None) -> dict[str, str]:
    """Relative name -> sha256 of every file in `folder` except its manifest."""
    files = (path for path in artifact_files(folder) if path != folder / MANIFEST)
    return (hashes or FileHashes()).of_files(files, folder)


def hash_tensors(path: Path) -> dict[str, str]:
    """Name -> sha256 of every tensor's bytes, in pieces of rows."""
    found = {}
    for name, info in read_tensor_infos(path).items():
        digest = hashlib.sha256()
        rows = info.shape[0] if info.shape else 1
        step = max(1, HASHED_BYTES // max(1, info.nbytes // max(1, rows)))
        for start in range(0, rows, step):
            piece = read_rows(info, start, min(rows, start + step))
            digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        found[name] = digest.hexdigest()
    return found


def encode_manifest(content: Mapping[str, Any]) -> bytes:
    """The text of a manifest, its own hash filled in. No other text says the same."""

    def text(own_hash: str) -> bytes:
        filled = {**content, SELF_HASH: own_hash}
        return (json.dumps(filled, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    return text(hashlib.sha256(text(HASH_PLACEHOLDER)).hexdigest())


def write_manifest(
    folder: Path,
    kind: str,
    source: Provenance,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    files: Collection[str] | None = None,
    hashes: FileHashes | None = None,
) -> None:
    """Write the manifest of a finished folder. No time, host or path: same input, same bytes.

    Args:
        files: of the folder that belong to the output; None for all that are there.
        hashes: has read some of them already, as inputs that are linked.
    """
    if files is None:
        digests = hash_files(folder, hashes)
    else:
        digests = (hashes or FileHashes()).by_name(folder / name for name in files)
    content = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "source": source.to_json(),
        "recipe": dict(recipe),
        "facts": dict(facts),
        "versions": {"dsconv": __version__},
        "sha256": digests,
        "tensors": {
            name: hash_tensors(folder / name)
            for name in digests
            if name.endswith(".safetensors") and "/" not in name
        },
    }
    (folder / MANIFEST).write_bytes(encode_manifest(content))
