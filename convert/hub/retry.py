"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from dsconv.errors import DownloadError

from .messages import TRY_AGAIN, Stopped

PROGRESS_BYTES = 256 << 10  # so many bytes since the last failure, and the count begins again


@dataclass(frozen=True)
class RetryPolicy:
    """Waits of first_wait, twice that, … seconds; `limit` of them without progress are the end.

    timeout: seconds without a byte that count as a failure.
    longest: seconds that an endpoint may ask for (Retry-After).
    """

    limit: int = 6
    first_wait: float = 0.5
    longest: float = 120.0
    timeout: float = 20.0


class Attempts:
    """Of one request, or one piece of a file."""

    def __init__(self, policy: RetryPolicy, what: str, stopping: threading.Event) -> None:
        self._policy = policy
        self._what = what
        self._stopping = stopping
        self._failures = 0

    def progress(self, count: int) -> None:
        if count >= PROGRESS_BYTES:
            self._failures = 0

    def failed(self, reason: str, retry_after: float | None = None) -> None:
        """Wait for the next attempt.

        Raises:
            DownloadError: there were enough.
            Stopped: the download was given up meanwhile.
        """
        self._failures += 1
        if self._failures > self._policy.limit:
            raise DownloadError(
                f"{self._what}: {reason}, {self._failures} times in a row", TRY_AGAIN
            )
        wait = self._policy.first_wait * 2 ** (self._failures - 1)
        wait *= random.uniform(0.75, 1.25)  # many processes must not come back at once
        if retry_after is not None:
            if retry_after > self._policy.longest:
                raise DownloadError(
                    f"{self._what}: {reason}, and asks to wait for {retry_after:.0f} s "
                    f"(limit {self._policy.longest:.0f} s)",
                    "wait that long, then " + TRY_AGAIN,
                )
            wait = max(wait, retry_after)
        if self._stopping.wait(min(wait, self._policy.longest)):
            raise Stopped
