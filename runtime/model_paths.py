"""What a user names: a model, which may have to be downloaded first, and an output.

People see how a download goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsconv.atomic import refuse_existing
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.hub.model_name import looks_like_hub_name
from dsconv.convert.hub.pull import Puller, Watch, snapshot
from dsconv.convert.open import open_checkpoint
from dsconv.convert.streamed_checkpoint import streamed_checkpoint
from dsconv.errors import UsageError

from .console import progress, say


def open_model(model: str) -> Checkpoint:
    """`convert.open.open_checkpoint` with a progress bar for downloads."""
    return open_checkpoint(local_path(model))


def local_path(model: str) -> str:
    """Of a model of the hub, where it lies after downloading; of anything else, itself.

    Raises:
        DownloadError, OutputError, UnsupportedError: as `convert.hub.pull.snapshot`.
    """
    if os.path.exists(Path(model).expanduser()) or not looks_like_hub_name(model):
        return model
    with resumable():
        return str(snapshot(model, Watch(progress, say)))


@contextmanager
def streamed_model(model: str, output: Path) -> Iterator[Checkpoint]:
    """A model of the hub whose shards pass through a folder beside `output`, a few at a time.

    Raises:
        UsageError: a model that lies on this machine.
        others: as `convert.streamed_checkpoint`.
    """
    if os.path.exists(Path(model).expanduser()):
        raise UsageError(f"{model}: lies on this machine, and stays", "leave out --no-keep")
    final = output.absolute()
    folder = final.with_name(final.name + ".shards")
    with streamed_checkpoint(model, folder, Puller(watch=Watch(say=say))) as checkpoint:
        yield checkpoint


@contextmanager
def resumable() -> Iterator[None]:
    """Say that an interrupted download is not lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say("interrupted; the same command goes on where it stopped")
        raise


def check_output(model: str, output: Path, overwrite: bool, single_file: bool = False) -> None:
    """Fail before any work: the output is taken, or replacing it would remove the input."""
    refuse_existing(output, overwrite, single_file)
    source = Path(model).expanduser().resolve()
    if os.path.exists(output) and output.resolve() in (source, *source.parents):
        raise UsageError(f"{output}: holds the input", "choose another folder with -o")
