"""What a key of a settings file means to us: the rows of the tables of docs/settings.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Use(Enum):
    USED = "used"
    REFUSED = "refused"  # other values than the neutral ones
    NAMED = "named"  # as not applied, on stderr, where the value is not a neutral one
    NO_EFFECT = "no effect"


@dataclass(frozen=True)
class KnownKey:
    """why: what it does, or why nothing comes of it. neutral: values that ask for nothing."""

    use: Use
    why: str
    neutral: tuple[Any, ...] = ()

    def asks(self, value: object) -> bool:
        """Does the value ask for something? None and the neutral ones do not."""
        return value is not None and not is_neutral(value, self.neutral)


def is_neutral(value: object, neutral: tuple[Any, ...]) -> bool:
    """Is it one of them? False is not 0 here, nor true 1: in the wrong place they are mistakes."""
    return any(
        value == good and isinstance(value, bool) == isinstance(good, bool) for good in neutral
    )
