"""What `dsconv pull` does between parsing and printing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import UsageError
from dsconv.runtime.console import progress, say, size_text
from dsconv.runtime.model_paths import resumable


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

    def show(self) -> None:
        rate = f" ({size_text(self.fetched_bytes / max(self.seconds, 1e-9))}/s)"
        fetched = size_text(self.fetched_bytes) + rate if self.fetched_bytes else "nothing"
        say(
            f"{self.name} at {self.commit[:12]}: {len(self.files)} files, "
            f"{size_text(self.size_bytes)}, every byte verified; fetched {fetched}"
        )
        print(self.path)


def pull_command(
    model: str, source: str | None, local_dir: Path | None, retries: int
) -> PullReport:
    """Download a model, unless it lies here already.

    Raises:
        UsageError: a folder or file of this machine.
        InputError, DownloadError, OutputError, UnsupportedError: as `hub.pull.Puller.pull`.
    """
    from dsconv.convert.hub.model_name import parse_reference
    from dsconv.convert.hub.pull import Puller, Watch
    from dsconv.convert.hub.retry import RetryPolicy

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
