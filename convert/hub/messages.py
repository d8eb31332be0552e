"""What goes wrong on the way, in sentences."""

from __future__ import annotations

import email.utils
import time
from contextlib import suppress
from typing import Protocol

from dsconv.errors import DownloadError

TRY_AGAIN = "run the same command again: it resumes where it stopped"
MIRROR = "check the network; the variable HF_ENDPOINT chooses a mirror"


class Headers(Protocol):
    """Of an answer; every HTTP library has a type of its own."""

    def get(self, name: str, /) -> str | None: ...


class Unreachable(DownloadError):
    """No answer from the endpoint: what lies in the cache may do.

    is_transient: the next attempt may have one, after `retry_after` seconds if it says so.
    """

    def __init__(
        self,
        message: str,
        hint: str,
        is_transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.is_transient = is_transient
        self.retry_after = retry_after


class Refused(DownloadError):
    """An answer that will be the same next time."""


class Stopped(Exception):
    """Another part of the download has failed, or the user has had enough."""


def refusal(status: int, model: str, what: str) -> Refused:
    """The sentence for an HTTP status that says no."""
    if status == 401:
        return Refused(
            f"{model}: {what}: not found, or private (status 401)",
            "check the name; HF_TOKEN grants access to private models",
        )
    if status == 403:
        return Refused(
            f"{model}: {what}: no permission (status 403)",
            "accept its conditions on the model's page, and set HF_TOKEN to that account's token",
        )
    if status == 404:
        return Refused(
            f"{model}: {what}: not found (status 404)",
            "check the name and the revision; HF_ENDPOINT chooses a mirror",
        )
    return Refused(f"{model}: {what}: refused with status {status}", MIRROR)


def retry_after(headers: Headers) -> float | None:
    """Seconds that an answer asks to wait, given as such or as a date."""
    text = headers.get("Retry-After")
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
