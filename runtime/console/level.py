"""How much is said. It holds within a block, so that two callers do not disturb each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum


class Level(IntEnum):
    QUIET = 0  # errors and results only
    NORMAL = 1
    VERBOSE = 2


_LEVEL: ContextVar[Level] = ContextVar("level", default=Level.NORMAL)


def level() -> Level:
    return _LEVEL.get()


@contextmanager
def at_level(wanted: Level) -> Iterator[None]:
    token = _LEVEL.set(wanted)
    try:
        yield
    finally:
        _LEVEL.reset(token)
