"""Run a function that strangers wrote in a process of its own, with an end to its time and memory.

A copy of this process (fork) does the work and is killed when the time is over, whatever C code it
is in. That costs a few milliseconds, far less than a new interpreter. Where processes cannot be
copied safely (macOS, Windows) the function runs here, and must watch itself.
"""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

CAN_FORK = sys.platform == "linux"
PIECE = 1 << 16  # bytes read from the pipe at a time
DONE, FAILED = b"+", b"-"


class BoundReached(Exception):
    """The function took too long, needed too much, or its process died; says which."""


def bounded_call(work: Callable[[], str], seconds: float, memory: int, largest: int) -> str:
    """-> what `work` returns, a text of at most `largest` bytes.

    Args:
        memory: bytes beyond those in use now.

    Raises:
        BoundReached: with the words to tell; also where `work` raises it.
    """
    if not CAN_FORK:
        return work()
    source, sink = os.pipe()
    try:
        with warnings.catch_warnings():  # of threads: the copy runs Python only, and not for long
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:  # no memory, or too many processes
        os.close(source)
        os.close(sink)
        return work()
    if child == 0:
        _child(work, source, sink, seconds, memory)
    os.close(sink)
    status = 0
    try:
        answer = _read(source, time.monotonic() + seconds, largest + 1)
        if answer is None:
            raise BoundReached(f"still running after {seconds:g} seconds")
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)  # it has nothing more to say
        _, status = os.waitpid(child, 0)
    if len(answer) > largest + 1:
        raise BoundReached(f"more than {largest} bytes of text")
    if answer[:1] == DONE:
        return answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] == FAILED:
        raise BoundReached(answer[1:].decode("utf-8", "surrogatepass"))
    raise BoundReached(f"its process died of signal {os.WTERMSIG(status)}")


def _read(source: int, deadline: float, most: int) -> bytes | None:
    """Everything up to the end of the pipe, or just more than `most`; None when time is over."""
    found = bytearray()
    while len(found) <= most:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([source], [], [], left)[0]:
            return None
        piece = os.read(source, PIECE)
        if not piece:
            break
        found += piece
    return bytes(found)


def _child(work: Callable[[], str], source: int, sink: int, seconds: float, memory: int) -> None:
    """Never returns: nothing of the parent's (handlers, buffers, locks) may run here."""
    try:
        os.close(source)
        _limit_process(seconds, memory)
        try:
            answer = DONE + work().encode("utf-8", "surrogatepass")
        except BoundReached as error:
            answer = FAILED + str(error).encode("utf-8", "surrogatepass")
        except MemoryError:
            answer = FAILED + b"not enough memory"
        while answer:
            answer = answer[os.write(sink, answer) :]
    finally:
        os._exit(0)


def _limit_process(seconds: float, memory: int) -> None:
    """Processor time too: should the parent die, nobody is left to end this process."""
    cpu = math.ceil(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    size = pages * resource.getpagesize() + memory
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    lowered = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (lowered, hard))
