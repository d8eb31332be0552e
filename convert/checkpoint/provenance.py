"""What an output was made from: the source's name, its commit where known, a hash of every file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST
from dsconv.convert.files.hashes import HASH_PLACEHOLDER, FileHashes
from dsconv.convert.files.json_file import read_json_object
from dsconv.errors import InputError

from .checkpoint import CONFIG, SIDE_FILES, Checkpoint
from .tensors import ASCEND_DESCRIPTION, ASCEND_INDEX, INDEX, HashedSource

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
