"""Errors in the shape that clients of OpenAI's interface read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsconv.errors import DsconvError, InputError, UsageError

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(Exception):
    """What is told to whoever asked.

    param: the field of the request that it is about.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        kind = TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def problem_of(error: DsconvError) -> Problem:
    """What was asked makes no sense, or the model cannot go on."""
    text = f"{error.message}; {error.hint}"
    if isinstance(error, (UsageError, InputError)):
        code = "context_length_exceeded" if "context" in error.message else None
        return Problem(400, text, code=code)
    return Problem(500, text)
