"""sha256 of files, with a memory for large ones: tens of gigabytes are not read twice.

A file counts as unchanged while its identity (device, inode), its size and both its times are the
same; the time of the last change of an inode cannot be set back.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ..atomic import output_file
from ..errors import InputError, OutputError
from .provenance import sha256_file

NAME = "hashes.json"
LARGE = 64 << 20  # bytes; smaller files are read in the blink of an eye


class FileHashes:
    """Hashes files; what it learns of large ones is kept in `folder` (None: nowhere).

    Any thread may ask.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / NAME if folder else None
        self._known = _read(self._path) if self._path else {}
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """Hex digest of the file's content.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            key = _key(path)
            with self._lock:
                known = self._known.get(key) if key else None
            if known is not None:
                return known
            digest = sha256_file(path)
            if key:
                self._keep(key, digest)
        except OSError as error:
            raise InputError(
                f"{path}: cannot read: {error.strerror}", "check the file and its permissions"
            ) from error
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """The file was hashed while it was written."""
        with suppress(OSError):
            key = _key(path)
            if key:
                self._keep(key, digest)

    def of_files(self, paths: Iterable[Path], folder: Path) -> dict[str, str]:
        """Name relative to `folder` -> digest, in the order of the names."""
        return {os.path.relpath(path, folder): self.sha256(path) for path in sorted(paths)}

    def _keep(self, key: str, digest: str) -> None:
        """A memory that cannot be written is none: the file is read again next time."""
        with self._lock:
            self._known[key] = digest
            if self._path is None:
                return
            with suppress(OutputError, OSError), output_file(self._path, overwrite=True) as partial:
                partial.write_text(json.dumps(self._known, indent=0), encoding="utf-8")


def _key(path: Path) -> str:
    """Changes whenever the file does; empty for a small one, which is not remembered."""
    state = path.stat()
    times = f"{state.st_mtime_ns}:{state.st_ctime_ns}"
    identity = f"{state.st_dev}:{state.st_ino}:{state.st_size}:{times}"
    return identity if state.st_size >= LARGE else ""


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
