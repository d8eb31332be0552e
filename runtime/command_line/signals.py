"""Ctrl-C and a polite kill end the process in time, whatever it is busy with.

Both unwind the command as an exception does. That can take long: a kernel that computes for a
minute is not interrupted, and threads are waited for. After a moment of grace the process ends all
the same; nothing is lost by that, since outputs stand whole or not at all and a quantization goes
on from its journal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 1.2  # seconds; with the end of Python itself it stays below two
ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Within the block; after a signal for the rest of the process, whose end is part of it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not ours
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.close(writer)  # the watcher ends, unless it is counting the seconds already


@contextmanager
def interrupt_as_flag() -> Iterator[threading.Event]:
    """Within the block Ctrl-C only sets the flag: the process goes on, and so does the block. A
    second one ends it as ever."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, frame: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    wakeup = signal.set_wakeup_fd(-1)  # the watcher would count the seconds
    before = signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def _watch(reader: int) -> None:
    """The numbers of signals arrive here at once, also while the main thread is in a kernel."""
    while received := os.read(reader, 1):
        if received[0] in ENDING:
            time.sleep(GRACE)
            os._exit(128 + received[0])
    os.close(reader)
