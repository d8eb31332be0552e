"""Errors a user can act on, one class per exit code.

DsconvError
├── VerdictFailed      1   a threshold of `verify` was not met
├── UsageError         2   the command line makes no sense
├── InputError         3   a file or a value in it is wrong
├── UnsupportedError   4   right, but dsconv cannot do it
├── DownloadError      5   network, hub
├── OutputError        6   disk, permission, lock
└── ProviderError      7   an execution provider is not available

Anything else that escapes is a bug of ours (exit code 70).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_WORDS = 1000  # characters: what a file says may be quoted, however long it is


class DsconvError(Exception):
    """A message (what, where, the value, the limit) and a hint (the cure)."""

    exit_code = 70
    kind = "bug"  # in the error object of --json

    def __init__(self, message: str, hint: str) -> None:
        self.message = _shortened(message)
        self.hint = _shortened(hint)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes out of another process as it was; Exception would leave out the hint."""
        return _as_it_was, (type(self), vars(self))


def _as_it_was(kind: type[DsconvError], state: dict[str, Any]) -> DsconvError:
    error = kind.__new__(kind, state["message"])
    error.__dict__.update(state)
    return error


def choose(word: str, names: Iterable[str]) -> str:
    """The hint for a word that is none of these names: the nearest, and all of them."""
    from difflib import get_close_matches

    known = list(names)
    low = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), low, n=1)
    guess = f"did you mean {low[near[0]]!r}? " if near else ""
    return f"{guess}choose {', '.join(known)}"


def _shortened(text: str) -> str:
    """Without its middle, so that where it begins and the limit at its end both stay."""
    if len(text) <= MAX_WORDS:
        return text
    return f"{text[: MAX_WORDS - 300]} … {text[-290:]}"


class VerdictFailed(DsconvError):
    exit_code = 1
    kind = "verdict"


class UsageError(DsconvError):
    exit_code = 2
    kind = "usage"


class InputError(DsconvError):
    exit_code = 3
    kind = "input"


class UnsupportedError(DsconvError):
    exit_code = 4
    kind = "unsupported"


class DownloadError(DsconvError):
    exit_code = 5
    kind = "download"


class OutputError(DsconvError):
    exit_code = 6
    kind = "output"


class ProviderError(DsconvError):
    exit_code = 7
    kind = "provider"
