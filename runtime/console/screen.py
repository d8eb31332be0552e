"""The one line at the foot of a terminal, or, where there is none, plain lines now and then.

The line moves by itself, from a thread, so that it shows life while a library is loaded or a
kernel computes. Whatever is printed meanwhile comes above it: stdout and stderr are wrapped.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, TextIO

from .line import Task, bar, words

TICK = 0.2  # seconds between two pictures of the line
FIRST, OFTEN, SELDOM = 10.0, 10.0, 60.0  # seconds: plain lines; at a tenth more, and at least


def is_screen(stream: TextIO) -> bool:
    """A terminal that goes back to the start of a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Screen:
    """Shows one of its tasks at a time."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_screen = is_screen(self._stream)
        encoding = getattr(self._stream, "encoding", None) or ""
        self._is_unicode = encoding.lower().replace("-", "") == "utf8"
        self._tasks: list[Task] = []
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._shown = 0  # columns of the line that stands
        self._is_free = True  # the cursor is at the start of a line
        self._has_result = False  # something is on stdout: only bars are shown from here on
        self._said, self._tenths = time.monotonic() + FIRST - OFTEN, -1
        self._wrapped: tuple[Any, Any] | None = None

    def __enter__(self) -> Screen:
        if self._is_screen:
            self._wrapped = (sys.stdout, sys.stderr)
            if sys.stdout.isatty():
                sys.stdout = _Above(self, sys.stdout, True)
            sys.stderr = _Above(self, sys.stderr, False)
        threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        with self._lock:
            self._erase()
            if self._wrapped is not None:
                sys.stdout, sys.stderr = self._wrapped

    def begin(self, title: str, total: int, unit: str) -> Task:
        task = Task(title, total, unit, time.monotonic())
        with self._lock:
            self._tasks.append(task)
            self._draw()
        return task

    def advance(self, task: Task, count: int) -> None:
        with self._lock:
            task.advance(count, time.monotonic())

    def end(self, task: Task) -> None:
        with self._lock:
            self._tasks.remove(task)
            for outer in self._tasks:
                if not outer.marks:
                    outer.preceded = time.monotonic() - outer.began
            self._tenths = -1
            self._erase()

    def write_above(self, stream: TextIO, text: str, is_result: bool) -> int:
        with self._lock:
            self._erase()
            written = stream.write(text)
            if text:
                self._is_free = text.endswith("\n")
                self._has_result |= is_result
            return written

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            with self._lock:
                if not self._ended.is_set():
                    self._draw() if self._is_screen else self._log()

    def _current(self) -> Task | None:
        """The innermost with an end, else the innermost; none of these once a result is written."""
        with_end = next((task for task in reversed(self._tasks) if task.total), None)
        if with_end or not self._tasks or self._has_result:
            return with_end
        return self._tasks[-1]

    def _draw(self) -> None:
        if not self._is_screen:
            return
        if not self._is_free:  # text is being streamed
            self._has_result = True
            return
        task = self._current()
        if task is None:
            return
        width = self._width()
        line = bar(task, time.monotonic(), width - 1, self._is_unicode)
        self._put(f"\r{line}{' ' * max(min(self._shown, width - 1) - len(line), 0)}")
        self._shown = len(line)

    def _erase(self) -> None:
        if self._shown:
            self._put(f"\r{' ' * min(self._shown, self._width() - 1)}\r")
            self._shown = 0

    def _log(self) -> None:
        """A plain line at every tenth, but not more often than OFTEN, and at least SELDOM."""
        task, now = self._current(), time.monotonic()
        if task is None or now - self._said < OFTEN:
            return
        tenths = int(10 * task.share)
        if tenths != self._tenths or now - self._said >= SELDOM:
            self._said, self._tenths = now, tenths
            self._put(words(task, now) + "\n")

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # whoever watched has gone; the work goes on
            self._ended.set()

    def _width(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return max(columns or 80, 20)  # 0: a terminal that does not tell


class _Above:
    """A stream whose text comes above the line of a screen."""

    def __init__(self, screen: Screen, stream: TextIO, is_result: bool) -> None:
        self._screen, self._stream, self._is_result = screen, stream, is_result

    def write(self, text: str) -> int:
        return self._screen.write_above(self._stream, text, self._is_result)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
