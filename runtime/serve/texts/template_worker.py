"""Where chat templates of a server run: a process that renders one conversation after the other.

It is started by `template_process`, and ends with its input. Compiling a template takes a hundred
times as long as rendering it, so one process does it once.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dsconv.runtime.text.bounded_call import BoundReached
from dsconv.runtime.text.template_sandbox import render

SIZE = 8  # bytes in front of every message, which say how long it is


def write_message(sink: BinaryIO, content: object) -> None:
    data = json.dumps(content).encode("ascii")
    sink.write(len(data).to_bytes(SIZE, "little") + data)
    sink.flush()


def work() -> None:
    """Never returns before its input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever started it says when
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    template = str(_next_message(source))
    write_message(sink, {})
    while True:
        asked = _next_message(source)
        if asked is None:
            return
        write_message(sink, _rendered(template, asked))


def _next_message(source: BinaryIO) -> Any:
    """None at the end of the input."""
    head = source.read(SIZE)
    return json.loads(source.read(int.from_bytes(head, "little"))) if len(head) == SIZE else None


def _rendered(template: str, asked: Mapping[str, Any]) -> dict[str, str]:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_size_limit(int(asked["memory"]), hard), hard))
    try:
        return {"text": render(template, asked["variables"], asked["characters"])}
    except BoundReached as error:
        return {"error": str(error)}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _size_limit(memory: int, hard: int) -> int:
    """Of the process, with so many bytes beyond those that it has."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():  # not Linux
        return hard
    size = int(sizes.read_text("ascii").split()[0]) * resource.getpagesize() + memory
    return size if hard == resource.RLIM_INFINITY else min(size, hard)
