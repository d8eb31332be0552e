"""sha256 of files, with a memory for large ones: tens of gigabytes are not read twice.

A file counts as unchanged while its identity (device, inode), its size and its time are the same.
Between processes the time of the last change of the inode counts too, which cannot be set back;
within one it does not, since every new hard link changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dsconv.atomic import output_file
from dsconv.errors import InputError, OutputError

NAME = "hashes.json"
HASH_PLACEHOLDER = "0" * 64  # as long as a hash
LARGE = 64 << 20  # bytes; smaller files are read in the blink of an eye


class Digest(Protocol):
    """A hash under way, of hashlib."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class FileHashes:
    """Hashes files; what it learns of large ones is kept in `folder` (None: in this process).

    Any thread may ask.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / NAME if folder else None
        self._kept = _read(self._path) if self._path else {}
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """Hex digest of the file's content.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            state = path.stat()
            with self._lock:
                known = self._known.get(_here(state)) or self._kept.get(_anywhere(state))
            if known is not None:
                return known
            digest = sha256_file(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot read: {error.strerror}", "check the file and its permissions"
            ) from error
        self._keep(state, digest)
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """The file was hashed while it was written."""
        with suppress(OSError):
            self._keep(path.stat(), digest)

    def by_name(self, paths: Iterable[Path]) -> dict[str, str]:
        """Name of the file -> digest."""
        return {path.name: self.sha256(path) for path in paths}

    def of_files(self, paths: Iterable[Path], folder: Path) -> dict[str, str]:
        """Name relative to `folder` -> digest, in the order of the names."""
        return {path.relative_to(folder).as_posix(): self.sha256(path) for path in sorted(paths)}

    def _keep(self, state: os.stat_result, digest: str) -> None:
        """A memory that cannot be written is none: the file is read again next time."""
        if state.st_size < LARGE:
            return
        with self._lock:
            self._known[_here(state)] = self._kept[_anywhere(state)] = digest
            if self._path is None:
                return
            with suppress(OutputError, OSError), output_file(self._path, overwrite=True) as partial:
                partial.write_text(json.dumps(self._kept, indent=0), encoding="utf-8")


def _here(state: os.stat_result) -> str:
    return f"{state.st_dev}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"


def _anywhere(state: os.stat_result) -> str:
    return f"{_here(state)}:{state.st_ctime_ns}"


def artifact_files(path: Path) -> list[Path]:
    """The file itself, or all files of a folder."""
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.rglob("*") if entry.is_file())


def combined(hashes: Mapping[str, str]) -> str:
    """One digest over names and digests."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}
