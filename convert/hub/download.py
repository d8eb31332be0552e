"""Many files and many ranges at once, hashed while they arrive.

A file is cut into pieces. Any connection fetches any piece; they are hashed and written in order,
so that what lies on the disk is always the beginning of the file: resuming needs its length and
nothing else. A piece is asked for only within a window after that, the most that a kill can cost.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from dsconv.progress import Advance

from .catalogue import Catalogue
from .client import Client
from .file_writer import FileWriter
from .listing import RemoteFile
from .messages import Stopped
from .range_request import Bodies, Failed, RangesIgnored
from .retry import Attempts, RetryPolicy
from .stores import Store, disk_error
from .transfer import Buffers, Transfer

# Bytes; at 20 ms per request and 100 MB/s a connection loses a third to waiting.
PIECE = 4 << 20
WINDOW = 16 << 20  # bytes of one file under way beyond what is on the disk
CONNECTIONS = 8
FILES = 4  # at a time
GRACE = 3.0  # seconds for the other threads to end after a failure

Task = Callable[[], None]


class Downloads:
    """Fetches files into a store; each is in place when it is whole and its hash is right.

    For one call of `fetch`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: Store,
        model: str,
        policy: RetryPolicy,
        advance: Advance,
        stopping: threading.Event | None = None,
    ) -> None:
        """stopping: whoever sets it ends the download, which raises Stopped then."""
        self._client = Client(catalogue.endpoint, catalogue.token, policy.timeout)
        self._store = store
        self._model = model
        self._policy = policy
        self._advance = advance
        self._changed = threading.Condition()
        self._given_up = stopping or threading.Event()
        self._stopping = threading.Event()
        self._waiting: list[Transfer] = []
        self._active: list[Transfer] = []
        self._failure: BaseException | None = None
        self._advance_lock = threading.Lock()
        self._buffers = Buffers(PIECE)
        self._bodies = Bodies(self._client, model, policy, self._stopping, self._move)
        self._writer = FileWriter(
            store, model, self._changed, self._stopping, self._move, self._end
        )

    def fetch(self, files: Sequence[tuple[RemoteFile, str]]) -> None:
        """Fetch (file, URL) pairs; what an earlier process has begun goes on.

        Raises:
            DownloadError: an answer that says no, a wrong hash, or failures beyond the limit.
            OutputError: the disk refuses.
        """
        self._waiting = [Transfer(file, url) for file, url in files]
        pieces = sum(max(1, -(-file.size // PIECE)) for file, _ in files)
        threads = [
            threading.Thread(target=self._work, name=f"download-{number}", daemon=True)
            for number in range(min(CONNECTIONS, pieces))
        ]
        try:
            for thread in threads:
                thread.start()
            end = math.inf
            while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
                for thread in threads:  # in short waits: a signal must get through everywhere
                    thread.join(0.1)
                if self._given_up.is_set():
                    self._stopping.set()
                    self._client.abort()
                if self._stopping.is_set():
                    end = min(end, time.monotonic() + GRACE)
        finally:
            self._stopping.set()
            self._client.abort()
            if not any(thread.is_alive() for thread in threads):
                for transfer in self._active:
                    transfer.close()
        if self._failure is not None:
            raise self._failure
        if self._active or self._waiting:
            raise Stopped

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                task()
        except Stopped:
            pass
        except OSError as error:
            self._fail(disk_error(error, self._store.folder))
        except BaseException as error:
            self._fail(error)
        finally:
            self._client.close()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._stopping.set()
            self._changed.notify_all()
        self._client.abort()

    def _next(self) -> Task | None:
        """Wait for something to do; None at the end."""
        with self._changed:
            while not self._stopping.is_set():
                for transfer in self._active:
                    task = self._task_of(transfer)
                    if task is not None:
                        return task
                if self._waiting and len(self._active) < FILES:
                    transfer = self._waiting.pop(0)
                    self._active.append(transfer)
                    return partial(self._writer.begin, transfer)
                if not self._active and not self._waiting:
                    return None
                self._changed.wait()
        return None

    def _task_of(self, transfer: Transfer) -> Task | None:
        size = transfer.file.size
        if not transfer.is_open or transfer.next_start >= size:
            return None
        if transfer.in_one_stream:
            if transfer.outstanding or transfer.is_writing:
                return None
            self._move(-sum(map(len, transfer.arrived.values())))
            transfer.rewind(transfer.written)
            transfer.next_start, transfer.outstanding = size, 1
            return partial(self._stream, transfer)
        start = transfer.next_start
        stop = min(start + PIECE, size)
        if stop - transfer.written > WINDOW:
            return None
        transfer.next_start = stop
        transfer.outstanding += 1
        return partial(self._fetch_piece, transfer, start, stop)

    def _fetch_piece(self, transfer: Transfer, start: int, stop: int) -> None:
        buffer = self._buffers.take(stop - start)
        try:
            self._read(transfer, start, buffer)
        except RangesIgnored:
            with self._changed:
                transfer.in_one_stream = True
                transfer.outstanding -= 1
                transfer.next_start = transfer.written
                self._changed.notify_all()
            return
        with self._changed:
            transfer.outstanding -= 1
            transfer.arrived[start] = buffer
            if transfer.is_writing:
                return
            transfer.is_writing = True
        self._writer.write_arrived(transfer, self._buffers)

    def _read(self, transfer: Transfer, start: int, buffer: memoryview) -> None:
        """Fill the buffer, in as many requests as it takes."""
        attempts = self._attempts(transfer)
        done = 0
        while done < len(buffer):
            before = done
            try:
                response = self._bodies.request(transfer, start + done, start + len(buffer))
                done += self._bodies.receive(response, buffer[done:])
            except Failed as failed:
                done += failed.received
                attempts.progress(done - before)
                attempts.failed(failed.reason, failed.retry_after)
            except RangesIgnored:
                self._move(-done)
                raise

    def _stream(self, transfer: Transfer) -> None:
        """The rest of the file in one response that begins at its beginning."""
        attempts = self._attempts(transfer)
        scratch = memoryview(bytearray(PIECE))
        size = transfer.file.size
        while transfer.written < size:
            before = transfer.written
            try:
                response = self._bodies.request(transfer, 0, size)
                position = 0
                while position < size:
                    skipping = position < before
                    limit = before if skipping else size
                    view = scratch[: min(len(scratch), limit - position)]
                    count = self._bodies.receive(response, view, 0 if skipping else 1)
                    position += count
                    if not skipping:
                        self._writer.write(transfer, view)
            except Failed as failed:
                attempts.progress(transfer.written - before)
                attempts.failed(failed.reason, failed.retry_after)
        with self._changed:
            transfer.outstanding -= 1
        self._writer.finish(transfer)

    def _attempts(self, transfer: Transfer) -> Attempts:
        return Attempts(self._policy, f"{self._model}: {transfer.file.name}", self._stopping)

    def _end(self, transfer: Transfer) -> None:
        with self._changed:
            transfer.close()
            self._active.remove(transfer)
            self._changed.notify_all()

    def _move(self, count: int) -> None:
        if count:
            with self._advance_lock:
                self._advance(count)
