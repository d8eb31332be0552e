"""What has arrived of a file, put on the disk in order; whole and right, it gets its name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from dsconv.convert.files.hashes import Digest
from dsconv.errors import DownloadError
from dsconv.progress import Advance

from .hashes import digest_for, kind_of
from .messages import Stopped
from .stores import Store
from .transfer import Buffers, Transfer

WRONG_HASHES = 2  # of the same file: the second time it is not the network's doing


class FileWriter:
    """For any thread, but one of them at a time for one file."""

    def __init__(
        self,
        store: Store,
        model: str,
        changed: threading.Condition,
        stopping: threading.Event,
        moved: Advance,
        ended: Callable[[Transfer], None],
    ) -> None:
        """
        Args:
            changed: guards what is known of all files, and is notified when it is another.
            moved: told the bytes that are there, or are not after all.
            ended: told the file that is in place.
        """
        self._store = store
        self._model = model
        self._changed = changed
        self._stopping = stopping
        self._moved = moved
        self._ended = ended

    def begin(self, transfer: Transfer) -> None:
        """Wait for the file's lock, then go on after what lies there."""
        file = transfer.file
        transfer.lock = self._store.lock(file, self._stopping)
        if self._store.find(file) is not None:  # another process was faster
            self._moved(file.size)
            return self._ended(transfer)
        path = self._store.partial(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        output = os.open(path, flags, 0o644)
        written = os.fstat(output).st_size
        if written > file.size:
            os.ftruncate(output, 0)
            written = 0
        transfer.digest = digest_for(file)
        self._hash_beginning(output, written, transfer.digest)
        self._moved(written)
        with self._changed:
            transfer.rewind(written)
            transfer.output = output
            self._changed.notify_all()
        if written == file.size:
            self.finish(transfer)

    def _hash_beginning(self, output: int, length: int, digest: Digest) -> None:
        position = 0
        while position < length:
            piece = os.read(output, 1 << 20)
            if not piece or self._stopping.is_set():
                raise Stopped
            digest.update(piece)
            position += len(piece)

    def write_arrived(self, transfer: Transfer, buffers: Buffers) -> None:
        """Whoever brings the next piece writes it, and all that follow on it."""
        while True:
            with self._changed:
                view = transfer.arrived.pop(transfer.written, None)
                if view is None:
                    transfer.is_writing = False
                    is_complete = transfer.written == transfer.file.size
                    to_sync = transfer.output_to_sync()
                    self._changed.notify_all()
                    break
            self.write(transfer, view)
            buffers.give(view)
        if is_complete:
            self.finish(transfer)
        if to_sync is not None:  # so that the disk works meanwhile, not only at the end
            try:
                os.fsync(to_sync)
            finally:
                os.close(to_sync)

    def write(self, transfer: Transfer, view: memoryview) -> None:
        assert transfer.digest is not None
        done = 0
        while done < len(view):
            done += os.pwrite(transfer.output, view[done:], transfer.written + done)
        transfer.digest.update(view)
        with self._changed:
            transfer.written += len(view)
            self._changed.notify_all()

    def finish(self, transfer: Transfer) -> None:
        assert transfer.digest is not None
        file, found = transfer.file, transfer.digest.hexdigest()
        if found != file.digest:
            return self._start_over(transfer, found)
        os.fsync(transfer.output)
        path = self._store.place(file)
        if file.has_sha256:
            self._store.hashes.remember(path, found)
        self._ended(transfer)

    def _start_over(self, transfer: Transfer, found: str) -> None:
        """Once: the fault may lie in what an earlier process has left, or in one bad answer."""
        transfer.wrong_hashes += 1
        file = transfer.file
        if transfer.wrong_hashes >= WRONG_HASHES:
            with suppress(OSError):
                self._store.partial(file).unlink()
            raise DownloadError(
                f"{self._model}: {file.name}: {kind_of(file)} is {found}, expected {file.digest}",
                "the endpoint, or a proxy on the way, sends damaged data; try again later, or "
                "another endpoint (HF_ENDPOINT)",
            )
        os.ftruncate(transfer.output, 0)
        self._moved(-file.size)
        with self._changed:
            transfer.digest = digest_for(file)
            transfer.resolved = None
            transfer.rewind(0)
            self._changed.notify_all()
