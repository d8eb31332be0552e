"""What the rest of the code says to people while it works, all of it on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from dsconv.progress import Advance

from .level import Level, level
from .screen import Screen

_SCREEN: ContextVar[Screen | None] = ContextVar("screen", default=None)


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield the function that moves a bar by a number of units."""
    if level() is Level.QUIET:
        yield lambda count: None
        return
    with ExitStack() as opened:
        screen = _SCREEN.get()
        if screen is None:
            screen = opened.enter_context(Screen())
            opened.callback(_SCREEN.reset, _SCREEN.set(screen))
        task = screen.begin(title, total, unit)
        opened.callback(screen.end, task)
        yield lambda count: screen.advance(task, count)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Something of unknown length is going on, until the block or the result begins."""
    with progress(title, 0, ""):
        yield


def say(message: str) -> None:
    """A line for people; nothing with --quiet."""
    if level() is not Level.QUIET:
        print(message, file=sys.stderr)


def detail(message: str) -> None:
    """A line for those who want to know more: with --verbose."""
    if level() is Level.VERBOSE:
        print(message, file=sys.stderr)
