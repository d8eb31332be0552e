"""What a calibrated run needs before its first layer: the text, and the bits of every matrix.

Both may cost minutes (the model writes the text; a backward pass measures the matrices), so they
are kept beside the journal, and a run that goes on after a crash reads them there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dsconv.atomic import fsync_path
from dsconv.errors import InputError, OutputError

PREPARED = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """windows: token ids to calibrate on; allocation: module -> label of its scheme."""

    windows: Sequence[Sequence[int]] = ()
    allocation: Mapping[str, str] = field(default_factory=dict)


def refuse_tokens_beyond(windows: Sequence[Sequence[int]], vocabulary: int) -> None:
    """What lies behind the embedding is no row of it.

    Raises:
        InputError: a window holds a token that the model lacks.
    """
    for number, window in enumerate(windows, start=1):
        for token in window:
            if not 0 <= token < vocabulary:
                raise InputError(
                    f"calibration window {number} holds token {token}, beyond the embedding, which "
                    f"has {vocabulary} rows",
                    "resize the embedding of the original model to its tokenizer, or calibrate on "
                    "text without that token",
                )


class Preparation(Protocol):
    """How to get there.

    purpose: everything that the result depends on besides the checkpoint and the options; written
    to the journal, so that a resumed run is known to want the same, and to the manifest.
    """

    @property
    def purpose(self) -> Mapping[str, Any]: ...

    def make(self) -> Prepared: ...


@dataclass(frozen=True)
class GivenWindows:
    """Windows that the caller has, and the bits that the options say."""

    windows: Sequence[Sequence[int]] = ()

    @property
    def purpose(self) -> Mapping[str, Any]:
        text = json.dumps([list(window) for window in self.windows])
        return {"sha256": hashlib.sha256(text.encode()).hexdigest()}

    def make(self) -> Prepared:
        return Prepared(self.windows)


def prepared(folder: Path, preparation: Preparation) -> Prepared:
    """What an earlier run has kept in the folder, or a new one, which is kept there.

    Raises:
        OutputError: what is there is damaged.
    """
    if isinstance(preparation, GivenWindows):
        return preparation.make()
    path = folder / PREPARED
    if path.exists():
        try:
            content = json.loads(path.read_bytes())
            return Prepared(content["windows"], content["allocation"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path}: damaged: {error}", "start again with --overwrite"
            ) from error
    made = preparation.make()
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(made)), encoding="utf-8")
    fsync_path(unfinished)
    os.replace(unfinished, path)
    fsync_path(folder)
    return made
