"""The residual activations that a calibration run keeps on disk, to go on from after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows, raw_bytes

NAME = "residual-{}.bin"


@dataclass(frozen=True)
class ResidualFiles:
    """One file per kept addition: all windows of all streams, one after the other.

    lengths: of the windows, in tokens; hidden: features of the residual.
    """

    folder: Path
    lengths: Sequence[int]
    hidden: int
    streams: int
    dtype: torch.dtype

    def write(self, addition: int, residual: Sequence[StoredWindows]) -> Path:
        path = self.folder / NAME.format(addition)
        with path.open("wb") as file:
            for stream in residual:
                for index in range(len(stream)):
                    file.write(raw_bytes(stream.get(index)))
        return path

    def read(self, addition: int, store: ActivationStore) -> list[StoredWindows]:
        """One per stream, kept in `store`."""
        streams = [store.new(len(self.lengths)) for _ in range(self.streams)]
        path = self.folder / NAME.format(addition)
        with path.open("rb") as file:
            for stream in streams:
                for index, length in enumerate(self.lengths):
                    value = torch.empty(1, length, self.hidden, dtype=self.dtype)
                    if file.readinto(raw_bytes(value)) != value.nbytes:
                        raise RuntimeError(f"{path} is shorter than the journal says")
                    stream.put(index, value)
        return streams

    def remove_all_but(self, kept: Path | None) -> None:
        for path in self.folder.glob(NAME.format("*")):
            if path != kept:
                path.unlink()
