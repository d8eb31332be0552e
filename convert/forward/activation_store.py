"""Where the activations of the calibration windows live: in memory up to a limit, then in a file.

The file is read and written, not mapped: mapped pages would count as the process's memory. It has
no name, so nothing of it is left however the process ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import torch


class ActivationStore:
    """Hands out `StoredWindows` that together keep at most `max_bytes` in memory."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._free = max_bytes
        self._lock = threading.Lock()
        self.spilled_bytes = 0

    def new(self, count: int) -> StoredWindows:
        return StoredWindows(self, count)

    def claim(self, size: int) -> bool:
        """Take `size` bytes of the memory; False when they are not there."""
        with self._lock:
            fits = size <= self._free
            self._free -= size if fits else 0
            self.spilled_bytes += 0 if fits else size
            return fits

    def release(self, size: int) -> None:
        with self._lock:
            self._free += size

    def open_file(self) -> int:
        """-> descriptor of a nameless file beside the output."""
        descriptor, name = tempfile.mkstemp(prefix="activations-", dir=self._folder)
        os.unlink(name)
        return descriptor


class StoredWindows:
    """One tensor per window; `put` and `get` may be called by several threads."""

    def __init__(self, store: ActivationStore, count: int) -> None:
        self._store = store
        self._in_memory: list[torch.Tensor | None] = [None] * count
        self._in_file: list[tuple[int, torch.Size, torch.dtype] | None] = [None] * count
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._end = 0

    def __len__(self) -> int:
        return len(self._in_memory)

    def put(self, index: int, value: torch.Tensor) -> None:
        if self._store.claim(value.nbytes):
            self._in_memory[index] = value
            return
        with self._lock:
            if self._descriptor is None:
                self._descriptor = self._store.open_file()
            start = self._end
            self._end += value.nbytes
        _write_all(self._descriptor, raw_bytes(value), start)
        self._in_file[index] = (start, value.shape, value.dtype)

    def get(self, index: int) -> torch.Tensor:
        value = self._in_memory[index]
        if value is not None:
            return value
        place = self._in_file[index]
        if place is None or self._descriptor is None:
            raise RuntimeError(f"window {index} is not stored")
        start, shape, dtype = place
        result = torch.empty(shape, dtype=dtype)
        _read_all(self._descriptor, raw_bytes(result), start)
        return result

    def drop(self, index: int) -> None:
        """Give the memory of one window back."""
        value = self._in_memory[index]
        if value is not None:
            self._in_memory[index] = None
            self._store.release(value.nbytes)

    def __del__(self) -> None:
        for index in range(len(self._in_memory)):
            self.drop(index)
        if self._descriptor is not None:
            os.close(self._descriptor)


def raw_bytes(value: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, to read or to write."""
    return value.view(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _read_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        piece = os.preadv(descriptor, [data], offset)
        if not piece:
            raise OSError("the file of activations is shorter than what was written")
        data, offset = data[piece:], offset + piece
