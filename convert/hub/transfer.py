"""One file on its way, and the memory that its pieces come in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dsconv.convert.files.hashes import Digest

from .listing import RemoteFile

SYNC_EVERY = 64 << 20  # bytes


@dataclass
class Transfer:
    """One file on its way. Guarded by the lock of `Downloads`, but for the one who writes."""

    file: RemoteFile
    url: str
    resolved: str | None = None  # where its redirect led
    lock: int = -1
    output: int = -1
    digest: Digest | None = None
    written: int = 0  # bytes on the disk, and in the digest
    synced: int = 0  # bytes that the disk was asked to keep
    next_start: int = 0
    outstanding: int = 0  # pieces asked for
    arrived: dict[int, memoryview] = field(default_factory=dict)
    is_writing: bool = False
    in_one_stream: bool = False  # for servers without ranges
    wrong_hashes: int = 0

    @property
    def is_open(self) -> bool:
        return self.output >= 0

    def rewind(self, written: int) -> None:
        self.written = self.next_start = self.synced = written
        self.arrived.clear()

    def output_to_sync(self) -> int | None:
        """A descriptor of its own, when there is enough to be flushed but not everything."""
        if self.written - self.synced < SYNC_EVERY or self.written == self.file.size:
            return None
        self.synced = self.written
        return os.dup(self.output)

    def close(self) -> None:
        for descriptor in (self.output, self.lock):
            if descriptor >= 0:
                os.close(descriptor)
        self.output = self.lock = -1


class Buffers:
    """Used again: fresh memory costs as much as reading into it."""

    def __init__(self, size: int) -> None:
        """size: bytes of the largest."""
        self._size = size
        self._free: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = bytearray(self._size)
        return memoryview(buffer)[:size]

    def give(self, view: memoryview) -> None:
        assert isinstance(view.obj, bytearray)
        self._free.append(view.obj)
