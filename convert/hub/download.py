"""Many files and many ranges at once, hashed while they arrive.

A file is cut into pieces. Any connection fetches any piece; they are hashed and written in order,
so that what lies on the disk is always the beginning of the file: resuming needs its length and
nothing else. A piece is asked for only within a window after that, the most that a kill can cost.
"""

from __future__ import annotations

import http.client
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from ...errors import DownloadError
from .catalogue import Catalogue, RemoteFile
from .client import TRANSIENT, Client, Response
from .digests import Digest, digest_for, kind_of
from .failures import Refused, Stopped, refusal
from .retry import Attempts, RetryPolicy
from .stores import Store, disk_error

# Bytes; at 20 ms per request and 100 MB/s a connection loses a third to waiting.
PIECE = 4 << 20
WINDOW = 16 << 20  # bytes of one file under way beyond what is on the disk
CONNECTIONS = 8
FILES = 4  # at a time
READ = 256 << 10  # bytes at a time, as the progress bar sees them
SYNC_EVERY = 64 << 20  # bytes
SLOWEST = 1024  # bytes per second; below it a connection counts as stuck
GRACE = 3.0  # seconds for the other threads to end after a failure
WRONG_HASHES = 2  # of the same file: the second time it is not the network's doing
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
EXPIRED = (401, 403, 404, 410)  # what a signed address of a redirect says when its time is over

Advance = Callable[[int], None]
Task = Callable[[], None]


class RangesIgnored(Exception):
    """The server sends the whole file, whatever was asked for."""


@dataclass
class _Transfer:
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
        self._waiting: list[_Transfer] = []
        self._active: list[_Transfer] = []
        self._failure: BaseException | None = None
        self._advance_lock = threading.Lock()
        self._buffers = _Buffers()

    def fetch(self, files: Sequence[tuple[RemoteFile, str]]) -> None:
        """Fetch (file, URL) pairs; what an earlier process has begun goes on.

        Raises:
            DownloadError: an answer that says no, a wrong hash, or failures beyond the limit.
            OutputError: the disk refuses.
        """
        self._waiting = [_Transfer(file, url) for file, url in files]
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

    # ---------------------------------------------------------------- tasks

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
                    return partial(self._begin, transfer)
                if not self._active and not self._waiting:
                    return None
                self._changed.wait()
        return None

    def _task_of(self, transfer: _Transfer) -> Task | None:
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

    def _begin(self, transfer: _Transfer) -> None:
        """Wait for the file's lock, then go on after what lies there."""
        file = transfer.file
        transfer.lock = self._store.lock(file, self._stopping)
        if self._store.find(file) is not None:  # another process was faster
            self._move(file.size)
            return self._end(transfer)
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
        self._move(written)
        with self._changed:
            transfer.rewind(written)
            transfer.output = output
            self._changed.notify_all()
        if written == file.size:
            self._finish(transfer)

    def _hash_beginning(self, output: int, length: int, digest: Digest) -> None:
        position = 0
        while position < length:
            piece = os.read(output, 1 << 20)
            if not piece or self._stopping.is_set():
                raise Stopped
            digest.update(piece)
            position += len(piece)

    # ---------------------------------------------------------------- network

    def _fetch_piece(self, transfer: _Transfer, start: int, stop: int) -> None:
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
        self._write_arrived(transfer)

    def _read(self, transfer: _Transfer, start: int, buffer: memoryview) -> None:
        """Fill the buffer, in as many requests as it takes."""
        attempts = self._attempts(transfer)
        done = 0
        while done < len(buffer):
            before = done
            try:
                response = self._ask(transfer, start + done, start + len(buffer))
                self._expect_range(transfer, response, start + done, start + len(buffer))
                done += self._receive(response, buffer[done:])
            except _Failed as failed:
                done += failed.received
                attempts.progress(done - before)
                attempts.failed(failed.reason, failed.retry_after)
            except RangesIgnored:
                self._move(-done)
                raise

    def _stream(self, transfer: _Transfer) -> None:
        """The rest of the file in one response that begins at its beginning."""
        attempts = self._attempts(transfer)
        scratch = memoryview(bytearray(PIECE))
        size = transfer.file.size
        while transfer.written < size:
            before = transfer.written
            try:
                response = self._ask(transfer, 0, size)
                self._expect_range(transfer, response, 0, size)
                position = 0
                while position < size:
                    skipping = position < before
                    limit = before if skipping else size
                    view = scratch[: min(len(scratch), limit - position)]
                    count = self._receive(response, view, 0 if skipping else 1)
                    position += count
                    if not skipping:
                        self._write(transfer, view)
            except _Failed as failed:
                attempts.progress(transfer.written - before)
                attempts.failed(failed.reason, failed.retry_after)
        with self._changed:
            transfer.outstanding -= 1
        self._finish(transfer)

    def _attempts(self, transfer: _Transfer) -> Attempts:
        return Attempts(self._policy, f"{self._model}: {transfer.file.name}", self._stopping)

    def _ask(self, transfer: _Transfer, start: int, stop: int) -> Response:
        """A response with a body worth reading.

        Raises:
            _Failed: worth another attempt.
            Refused: not.
        """
        is_whole = start == 0 and stop == transfer.file.size
        headers = {} if is_whole else {"Range": f"bytes={start}-{stop - 1}"}
        known = transfer.resolved
        try:
            response = self._client.get(known or transfer.url, headers)
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                f"{self._model}: {transfer.file.name}: {error.verify_message}",
                "SSL_CERT_FILE names the certificates that your network needs",
            ) from error
        except TRANSIENT as error:
            raise _Failed(_reason(error)) from error
        status = response.status
        if status in (200, 206):
            transfer.resolved = response.url if response.url != transfer.url else None
            return response
        self._client.drain(response.raw)
        if status in (408, 416, 425, 429) or status >= 500:
            raise _Failed(f"status {status}", retry_after=response.retry_after)
        if known is not None and status in EXPIRED:
            transfer.resolved = None
            raise _Failed(f"status {status} after a redirect")
        raise refusal(status, self._model, transfer.file.name)

    def _expect_range(self, transfer: _Transfer, response: Response, start: int, stop: int) -> None:
        """Raises _Failed when something else comes; RangesIgnored when everything does."""
        size, total = transfer.file.size, None
        if response.status == 206:
            match = CONTENT_RANGE.fullmatch((response.header("Content-Range") or "").strip())
            if match is None or (int(match[1]), int(match[2])) != (start, stop - 1):
                self._client.close()
                found = (response.header("Content-Range") or "none")[:60]
                raise _Failed(f"Content-Range {found}, asked for bytes {start}-{stop - 1}")
            total = None if match[3] == "*" else int(match[3])
        else:
            length = response.header("Content-Length") or ""
            total = int(length) if length.isdigit() else None
        if total is not None and total != size:
            self._client.close()
            raise _Failed(f"has {total} bytes, expected {size}")
        if response.status == 200 and not (start == 0 and stop == size):
            self._client.close()
            raise RangesIgnored

    def _receive(self, response: Response, view: memoryview, shown: int = 1) -> int:
        """Fill the view. shown: 0 for bytes that the progress bar has seen already."""
        done, mark, since = 0, 0, time.monotonic()
        try:
            while done < len(view):
                count = response.raw.readinto(view[done : done + READ])
                if not count:
                    raise ConnectionError("ended too early")
                done += count
                self._move(shown * count)
                now = time.monotonic()
                if now - since > self._policy.timeout:
                    if (done - mark) < SLOWEST * (now - since):
                        raise TimeoutError("too slow")
                    mark, since = done, now
        except TRANSIENT as error:
            self._client.close()
            if self._stopping.is_set():
                raise Stopped from error
            raise _Failed(_reason(error), done) from error
        return done

    # ---------------------------------------------------------------- disk

    def _write_arrived(self, transfer: _Transfer) -> None:
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
            self._write(transfer, view)
            self._buffers.give(view)
        if is_complete:
            self._finish(transfer)
        if to_sync is not None:  # so that the disk works meanwhile, not only at the end
            try:
                os.fsync(to_sync)
            finally:
                os.close(to_sync)

    def _write(self, transfer: _Transfer, view: memoryview) -> None:
        assert transfer.digest is not None
        done = 0
        while done < len(view):
            done += os.pwrite(transfer.output, view[done:], transfer.written + done)
        transfer.digest.update(view)
        with self._changed:
            transfer.written += len(view)
            self._changed.notify_all()

    def _finish(self, transfer: _Transfer) -> None:
        assert transfer.digest is not None
        file, found = transfer.file, transfer.digest.hexdigest()
        if found != file.digest:
            return self._start_over(transfer, found)
        os.fsync(transfer.output)
        path = self._store.place(file)
        if file.has_sha256:
            self._store.hashes.remember(path, found)
        self._end(transfer)

    def _start_over(self, transfer: _Transfer, found: str) -> None:
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
        self._move(-file.size)
        with self._changed:
            transfer.digest = digest_for(file)
            transfer.resolved = None
            transfer.rewind(0)
            self._changed.notify_all()

    def _end(self, transfer: _Transfer) -> None:
        with self._changed:
            transfer.close()
            self._active.remove(transfer)
            self._changed.notify_all()

    def _move(self, count: int) -> None:
        if count:
            with self._advance_lock:
                self._advance(count)


class _Buffers:
    """Used again: fresh memory costs as much as reading into it."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = bytearray(PIECE)
        return memoryview(buffer)[:size]

    def give(self, view: memoryview) -> None:
        assert isinstance(view.obj, bytearray)
        self._free.append(view.obj)


class _Failed(Exception):
    """One attempt; `received` bytes of it are good."""

    def __init__(self, reason: str, received: int = 0, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.received = received
        self.retry_after = retry_after


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no data for too long"
    if isinstance(error, http.client.HTTPException):
        return f"no proper answer ({type(error).__name__})"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
