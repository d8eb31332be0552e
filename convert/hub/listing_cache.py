"""What an endpoint has said before: the files of a commit never change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dsconv.atomic import output_file
from dsconv.convert.checkpoint.weight_files import INDEX
from dsconv.convert.files.gguf_parts import part_names
from dsconv.convert.files.json_file import read_json_object
from dsconv.errors import DsconvError, OutputError

from .listing import Listing, RemoteFile, checked_listing
from .model_name import ModelReference
from .name_checks import COMMIT, GIT_SHA1, SHA256
from .stores import default_revision, model_folder

FOLDER = "listings"


class KeptListings:
    """In dsconv's own cache, one file per commit and endpoint."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder / FOLDER
        self._endpoint = endpoint

    def read(self, reference: ModelReference) -> Listing | None:
        """Of a revision that is a commit; None when it was not listed yet."""
        if reference.commit is None:
            return None
        path = self._path(reference, reference.commit)
        with suppress(DsconvError, OSError, ValueError, TypeError):
            if path.is_file():
                files = read_json_object(path)["files"]
                return checked_listing(reference, reference.commit, (tuple(f) for f in files))
        return None

    def write(self, listing: Listing) -> None:
        """Where that is not possible, the endpoint is asked again next time."""
        path = self._path(listing.reference, listing.commit)
        hashes = ((f.digest, None) if f.has_sha256 else (None, f.digest) for f in listing.files)
        files = [(f.name, f.size, *pair) for f, pair in zip(listing.files, hashes, strict=True)]
        with suppress(OutputError, OSError), output_file(path, overwrite=True) as partial:
            partial.write_text(json.dumps({"files": files}), encoding="utf-8")

    def _path(self, reference: ModelReference, commit: str) -> Path:
        key = "\n".join((self._endpoint, reference.source, reference.name, commit))
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"


def listing_of_snapshot(reference: ModelReference, root: Path) -> Listing | None:
    """Read from the hub's cache what it holds of a revision; None when that is not a whole model.

    The cache names every blob by its hash, so that even these files can be verified.
    """
    model = model_folder(root, reference)
    commit = reference.commit or _commit_of(model, reference)
    folder = model / "snapshots" / (commit or "none")
    if commit is None or not folder.is_dir():
        return None
    files = tuple(_files(folder))
    names = {file.name for file in files}
    if reference.file is not None:
        is_whole = set(part_names(reference.file)) <= names
    elif reference.label is not None:
        is_whole = any(name.endswith(".gguf") for name in names)
    else:
        is_whole = _has_weights(folder, names)
    return Listing(reference, commit, files) if is_whole else None


def _commit_of(model: Path, reference: ModelReference) -> str | None:
    ref = model / "refs" / (reference.revision or default_revision(reference))
    with suppress(OSError, ValueError):
        text = ref.read_text(encoding="ascii").strip()
        return text if COMMIT.fullmatch(text) else None
    return None


def _files(folder: Path) -> Iterator[RemoteFile]:
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            continue
        digest = Path(os.readlink(path)).name
        if (SHA256.fullmatch(digest) or GIT_SHA1.fullmatch(digest)) and path.is_file():
            yield RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _has_weights(folder: Path, names: set[str]) -> bool:
    if "config.json" not in names:
        return False
    if INDEX not in names:
        return any(name.endswith(".safetensors") for name in names)
    with suppress(DsconvError):
        shards = read_json_object(folder / INDEX).get("weight_map")
        return isinstance(shards, dict) and set(map(str, shards.values())) <= names
    return False
