"""Is there room for an output? Asked before any work; nothing else here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .atomic import output_error, partial_of
from .errors import OutputError


def existing_folder(path: Path) -> Path:
    """The folder on whose disk `path` lies or would lie."""
    place = path.absolute().parent
    while not os.path.isdir(place) and place != place.parent:
        place = place.parent
    return place


def free_bytes(output: Path) -> int:
    """Where `output` would lie; what an unfinished run has left there is ours."""
    partial = partial_of(output)
    left = [*partial.glob("*")] if os.path.isdir(partial) else [partial]
    # In blocks: files of an unfinished run have holes.
    ours = sum(512 * path.stat().st_blocks for path in left if os.path.isfile(path))
    return shutil.disk_usage(existing_folder(output)).free + ours


def require_space(output: Path, needed: int) -> None:
    """
    Raises:
        OutputError: fewer bytes than `needed` are free; or the disk does not answer.
    """
    try:
        free = free_bytes(output)
    except OSError as error:
        raise output_error(error, output) from error
    if needed > free:
        raise OutputError(
            f"{output}: needs {needed:,} bytes of disk, {free:,} are free",
            "free some space, or choose another disk with -o",
        )


def bytes_to_copy(paths: Iterable[Path], output: Path, copy: bool) -> int:
    """Of files that are linked where they lie on the disk of `output`, unless `copy`."""
    here = existing_folder(output).stat().st_dev
    found = [path.stat() for path in paths]
    return sum(stat.st_size for stat in found if copy or stat.st_dev != here)
