"""Downloading a model, and what was downloaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.hub.model_name import parse_reference
from dsconv.convert.hub.pull import Puller, Watch
from dsconv.convert.hub.retry import RetryPolicy
from dsconv.errors import UsageError

from .console import progress, say
from .model_paths import resumable


@dataclass(frozen=True)
class PullReport:
    path: Path
    source: str
    name: str
    revision: str | None
    commit: str
    files: tuple[dict[str, Any], ...]
    size_bytes: int
    fetched_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "files": list(self.files)}


def pull_model(model: str, source: str | None, local_dir: Path | None, retries: int) -> PullReport:
    """Download a model, unless it lies here already.

    Raises:
        UsageError: a folder or file of this machine.
        InputError, DownloadError, OutputError, UnsupportedError: as `hub.pull.Puller.pull`.
    """
    path = Path(model).expanduser()
    if path.exists() and source is None:
        raise UsageError(f"{model}: lies on this machine", "give the name of a model to download")
    reference = parse_reference(model, source)
    puller = Puller(local_dir, RetryPolicy(limit=retries), Watch(progress, say))
    start = time.perf_counter()
    with resumable():
        pulled = puller.pull(reference)
    files = tuple(
        {
            "name": file.name,
            "size_bytes": file.size,
            "sha256" if file.has_sha256 else "git_sha1": file.digest,
        }
        for file in pulled.files
    )
    return PullReport(
        pulled.path,
        reference.source,
        reference.name,
        reference.revision,
        pulled.commit,
        files,
        sum(file.size for file in pulled.files),
        pulled.fetched_bytes,
        time.perf_counter() - start,
    )
