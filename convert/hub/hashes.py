"""The two hashes by which hubs name content: sha256, and git's sha1 of a blob."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsconv.convert.files.hashes import Digest, FileHashes
from dsconv.errors import InputError

from .listing import RemoteFile


def digest_for(file: RemoteFile) -> Digest:
    """A hash to be fed with the file's content."""
    if file.has_sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def kind_of(file: RemoteFile) -> str:
    return "sha256" if file.has_sha256 else "git sha1"


def is_whole(path: Path, file: RemoteFile, hashes: FileHashes) -> bool:
    """Is this the file, to the last bit? Large ones are read once, then remembered."""
    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if file.has_sha256:
            return hashes.sha256(path) == file.digest
        digest = digest_for(file)
        with path.open("rb") as content:
            while piece := content.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest() == file.digest
    except (OSError, InputError):
        return False
