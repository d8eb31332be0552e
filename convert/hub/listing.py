"""The files of a model at one commit, as an endpoint lists them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .model_name import ModelReference
from .name_checks import GIT_SHA1, SHA256, check_commit, check_hash, check_size, refuse_traversal


@dataclass(frozen=True)
class RemoteFile:
    """digest: sha256 (64 hexadecimal digits) of the content, or git's sha1 of it as a blob (40)."""

    name: str
    size: int
    digest: str

    @property
    def has_sha256(self) -> bool:
        return SHA256.fullmatch(self.digest) is not None


@dataclass(frozen=True)
class Listing:
    """All files of a model. Nothing in it has been checked beyond `checked_listing`."""

    reference: ModelReference
    commit: str
    files: tuple[RemoteFile, ...]


def checked_listing(
    reference: ModelReference, commit: object, files: Iterable[tuple[Any, Any, Any, Any]]
) -> Listing:
    """A listing of (name, size, sha256 or None, git sha1 or None) as an endpoint gave them.

    Raises:
        DownloadError: a name, hash or commit that must not become part of a path.
    """
    model = str(reference)
    commit = check_commit(commit, model)
    checked = []
    for name, size, sha256, sha1 in files:
        name = refuse_traversal(name, model)
        kind, digest = (SHA256, sha256) if sha256 is not None else (GIT_SHA1, sha1)
        digest = check_hash(digest, kind, name, model)
        checked.append(RemoteFile(name, check_size(size, name, model), digest))
    return Listing(reference, commit, tuple(sorted(checked, key=lambda file: file.name)))


def find(files: Sequence[RemoteFile], name: str) -> RemoteFile | None:
    return next((file for file in files if file.name == name), None)
