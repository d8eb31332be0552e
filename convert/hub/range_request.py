"""Bytes of a file from an endpoint: one request, its answer checked, into a buffer."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
import time

from dsconv.progress import Advance

from .client import TRANSIENT, Client, Response
from .messages import Refused, Stopped, refusal
from .retry import RetryPolicy
from .transfer import Transfer

READ = 256 << 10  # bytes at a time, as the progress bar sees them
SLOWEST = 1024  # bytes per second; below it a connection counts as stuck
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
EXPIRED = (401, 403, 404, 410)  # what a signed address of a redirect says when its time is over


class RangesIgnored(Exception):
    """The server sends the whole file, whatever was asked for."""


class Failed(Exception):
    """One attempt; `received` bytes of it are good."""

    def __init__(self, reason: str, received: int = 0, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.received = received
        self.retry_after = retry_after


class Bodies:
    """For any thread; `moved` is told the bytes that have come."""

    def __init__(
        self,
        client: Client,
        model: str,
        policy: RetryPolicy,
        stopping: threading.Event,
        moved: Advance,
    ) -> None:
        self._client = client
        self._model = model
        self._policy = policy
        self._stopping = stopping
        self._moved = moved

    def request(self, transfer: Transfer, start: int, stop: int) -> Response:
        """A response whose body is bytes [start, stop) of the file.

        Raises:
            Failed: worth another attempt.
            RangesIgnored: it would be the whole file.
            Refused: not worth another.
        """
        response = self._ask(transfer, start, stop)
        self._expect_range(transfer, response, start, stop)
        return response

    def _ask(self, transfer: Transfer, start: int, stop: int) -> Response:
        """A response with a body worth reading.

        Raises:
            Failed: worth another attempt.
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
            raise Failed(_reason(error)) from error
        status = response.status
        if status in (200, 206):
            transfer.resolved = response.url if response.url != transfer.url else None
            return response
        self._client.drain(response.raw)
        if status in (408, 416, 425, 429) or status >= 500:
            raise Failed(f"status {status}", retry_after=response.retry_after)
        if known is not None and status in EXPIRED:
            transfer.resolved = None
            raise Failed(f"status {status} after a redirect")
        raise refusal(status, self._model, transfer.file.name)

    def _expect_range(self, transfer: Transfer, response: Response, start: int, stop: int) -> None:
        """Raises Failed when something else comes; RangesIgnored when everything does."""
        size, total = transfer.file.size, None
        if response.status == 206:
            match = CONTENT_RANGE.fullmatch((response.header("Content-Range") or "").strip())
            if match is None or (int(match[1]), int(match[2])) != (start, stop - 1):
                self._client.close()
                found = (response.header("Content-Range") or "none")[:60]
                raise Failed(f"Content-Range {found}, asked for bytes {start}-{stop - 1}")
            total = None if match[3] == "*" else int(match[3])
        else:
            length = response.header("Content-Length") or ""
            total = int(length) if length.isdigit() else None
        if total is not None and total != size:
            self._client.close()
            raise Failed(f"has {total} bytes, expected {size}")
        if response.status == 200 and not (start == 0 and stop == size):
            self._client.close()
            raise RangesIgnored

    def receive(self, response: Response, view: memoryview, shown: int = 1) -> int:
        """Fill the view. shown: 0 for bytes that the progress bar has seen already."""
        done, mark, since = 0, 0, time.monotonic()
        try:
            while done < len(view):
                count = response.raw.readinto(view[done : done + READ])
                if not count:
                    raise ConnectionError("ended too early")
                done += count
                self._moved(shown * count)
                now = time.monotonic()
                if now - since > self._policy.timeout:
                    if (done - mark) < SLOWEST * (now - since):
                        raise TimeoutError("too slow")
                    mark, since = done, now
        except TRANSIENT as error:
            self._client.close()
            if self._stopping.is_set():
                raise Stopped from error
            raise Failed(_reason(error), done) from error
        return done


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no data for too long"
    if isinstance(error, http.client.HTTPException):
        return f"no proper answer ({type(error).__name__})"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
