"""What a user names: a model, which may have to be downloaded first, and an output.

People see how a download goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dsconv.atomic import refuse_existing
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, refuse_special_ids_beyond
from dsconv.convert.families.config_keys import config_remarks
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.hub.model_name import looks_like_hub_name, parse_reference
from dsconv.convert.hub.pull import Puller, Watch, snapshot
from dsconv.convert.hub.retry import RetryPolicy
from dsconv.convert.open import open_checkpoint
from dsconv.convert.streamed_checkpoint import streamed_checkpoint
from dsconv.errors import UsageError

from .console import progress, say


def open_model(model: str) -> Checkpoint:
    """`convert.open.open_checkpoint` with a progress bar for downloads.

    What is known to change results for other readers of its settings is said, and its notes.
    """
    checkpoint = open_checkpoint(local_path(model))
    say_notes([*_remarks(checkpoint), *checkpoint.notes])
    refuse_special_ids_beyond(checkpoint)
    return checkpoint


def _remarks(checkpoint: Checkpoint) -> list[str]:
    return config_remarks(ConfigReader(checkpoint.config, f"{checkpoint.origin}: {CONFIG}"))


def say_notes(notes: Iterable[str]) -> None:
    for note in notes:
        _say_once(note)


@cache
def _say_once(note: str) -> None:
    """A command may open one model several times."""
    say(f"note: {note}")


def local_path(model: str) -> str:
    """Of a model of the hub, where it lies after downloading; of anything else, itself.

    Raises:
        DownloadError, OutputError, UnsupportedError: as `convert.hub.pull.snapshot`.
    """
    if os.path.exists(Path(model).expanduser()) or not looks_like_hub_name(model):
        return model
    with resumable():
        return str(snapshot(model, Watch(progress, say)))


@dataclass(frozen=True)
class PullReport:
    """What was downloaded."""

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
        raise UsageError(f"{model}: is on this machine", "use the name of a model to download")
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


@contextmanager
def streamed_model(model: str, output: Path) -> Iterator[Checkpoint]:
    """A model of the hub whose shards pass through a folder beside `output`, a few at a time.

    Raises:
        UsageError: a model that lies on this machine.
        others: as `convert.streamed_checkpoint`.
    """
    if os.path.exists(Path(model).expanduser()):
        raise UsageError(f"{model}: is on this machine, and stays there", "leave out --no-keep")
    final = output.absolute()
    folder = final.with_name(final.name + ".shards")
    with streamed_checkpoint(model, folder, Puller(watch=Watch(say=say))) as checkpoint:
        say_notes([*_remarks(checkpoint), *checkpoint.notes])
        refuse_special_ids_beyond(checkpoint)
        yield checkpoint


@contextmanager
def resumable() -> Iterator[None]:
    """Say that an interrupted download is not lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say("interrupted; the same command resumes where it stopped")
        raise


def check_output(model: str, output: Path, overwrite: bool, single_file: bool = False) -> None:
    """Fail before any work: the output is taken, or replacing it would remove the input."""
    refuse_existing(output, overwrite, single_file)
    source = Path(model).expanduser().resolve()
    if os.path.exists(output) and output.resolve() in (source, *source.parents):
        raise UsageError(f"{output}: holds the input", "choose another folder with -o")
