"""dsconv.json: what an output was made from and by, with a hash of every file.

Of what it was made from it tells the name, the commit where known, and a hash of every file.
`tensors` holds one hash per tensor of every safetensors file too, so that damage can be named; and
`self_sha256` that of the manifest's own text with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsconv import __version__
from dsconv.atomic import MANIFEST
from dsconv.convert.files.hashes import HASH_PLACEHOLDER, FileHashes, artifact_files
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.files.safetensors import read_rows, read_tensor_infos
from dsconv.errors import InputError

from .checkpoint import CONFIG, SIDE_FILES, Checkpoint
from .tensors import ASCEND_DESCRIPTION, ASCEND_INDEX, HashedSource
from .weight_files import INDEX

FORMAT_VERSION = 2
SELF_HASH = "self_sha256"
HASHED_BYTES = 1 << 22  # read at a time
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_FOLDER = "models--"  # of the hub's cache: models--ORG--NAME/snapshots/COMMIT


@dataclass(frozen=True)
class Provenance:
    """files: name -> sha256; made_from: the same of the source, where its own manifest tells."""

    name: str
    files: Mapping[str, str]
    commit: str | None = None
    made_from: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "commit": self.commit,
            "sha256": dict(self.files),
            "made_from": self.made_from,
        }


def files_beside(checkpoint: Checkpoint) -> list[Path]:
    """What decides, beside the weights, what is made from the model."""
    if not checkpoint.origin.is_dir():
        return []
    names = (CONFIG, INDEX, ASCEND_DESCRIPTION, ASCEND_INDEX, *SIDE_FILES)
    beside = (checkpoint.origin / name for name in names)
    return [path for path in beside if path.is_file()]


def input_files(checkpoint: Checkpoint) -> list[Path]:
    """Everything of the model that decides what is made from it."""
    return [*checkpoint.source.files(), *files_beside(checkpoint)]


def provenance_of(checkpoint: Checkpoint, hashes: FileHashes | None = None) -> Provenance:
    """Reads every byte of the input; `hashes` remembers what it has read."""
    hashes, source = hashes or FileHashes(), checkpoint.source
    if isinstance(source, HashedSource):
        weights = dict(source.sha256())
    else:
        weights = hashes.by_name(source.files())
    files = weights | hashes.by_name(files_beside(checkpoint))
    return replace(announced_provenance(checkpoint), files=files)


def announced_provenance(checkpoint: Checkpoint) -> Provenance:
    """The same, and as long as text, with placeholders instead of hashes: reads next to nothing."""
    name, commit = name_and_commit(checkpoint.origin)
    files = {path.name: HASH_PLACEHOLDER for path in input_files(checkpoint)}
    return Provenance(name, files, commit, _source_of(checkpoint.origin))


def name_and_commit(origin: Path) -> tuple[str, str | None]:
    """Of a model of the hub's cache, `org/name` and the commit; else the name of file or folder."""
    place = origin.resolve() if origin.is_dir() else Path(os.path.abspath(origin))
    folder = place if origin.is_dir() else place.parent
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith(HUB_FOLDER):
        return place.name, None
    name = repository.removeprefix(HUB_FOLDER).replace("--", "/", 1)
    return name, folder.name if COMMIT.fullmatch(folder.name) else None


def _source_of(origin: Path) -> Mapping[str, Any] | None:
    """What the input itself was made from, when dsconv has made it."""
    if not (origin / MANIFEST).is_file():
        return None
    try:
        source = read_json_object(origin / MANIFEST).get("source")
    except InputError:
        return None
    return source if isinstance(source, dict) else None


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


@dataclass(frozen=True)
class Digests:
    """Of files by their names, and by those names of the tensors in files that are no
    safetensors."""

    files: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_manifest(
    folder: Path,
    kind: str,
    source: Provenance,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    digests: Mapping[str, str] | Digests | None = None,
) -> None:
    """Write the manifest of a finished folder. No time, host or path: same input, same bytes.

    Args:
        digests: of the files that belong to the output; None for all that are there.
    """
    if not isinstance(digests, Digests):
        digests = Digests(hash_files(folder) if digests is None else digests)
    content = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "source": source.to_json(),
        "recipe": dict(recipe),
        "facts": dict(facts),
        "versions": {"dsconv": __version__},
        "sha256": dict(digests.files),
        "tensors": {
            name: hash_tensors(folder / name)
            for name in digests.files
            if name.endswith(".safetensors") and "/" not in name
        }
        | {name: dict(found) for name, found in digests.tensors.items()},
    }
    (folder / MANIFEST).write_bytes(encode_manifest(content))
