"""Conversations to text, by the model's template, in a process that stays.

`run` starts a process for its one conversation (`text/bounded_call.py`), by a copy of its own. A
server would do that for every request: a few milliseconds each, and memory that is copied as soon
as the original writes to it. Limits are the same: the process is killed when time is over, and the
next conversation gets a new one.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, BinaryIO, cast

from dsconv.convert.files import limits
from dsconv.errors import InputError
from dsconv.runtime.text.chat_template import ESCAPED_BYTES, HINT

from .template_worker import SIZE, write_message

START_SECONDS = 30.0  # a new process imports what it needs, on a machine that is busy
MODULE = "dsconv.runtime.serve.texts.template_worker"
# Only what the server itself imports from, not the folder where it was started.
BEGIN = f"import sys; sys.path[:] = sys.argv[1:]; from {MODULE} import work; work()"


class TemplateProcess:
    """Safe for threads: they come one after the other."""

    def __init__(self, template: str) -> None:
        self.template = template
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self,
        turns: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, str],
        settings: Mapping[str, Any],
    ) -> str:
        """As `chat_template.render_turns`.

        Raises:
            InputError: the template is broken, refuses the messages, reaches out of its sandbox,
                or exceeds its limits of time and size.
        """
        if len(self.template) > limits.TEMPLATE_CHARACTERS:
            raise _problem(f"{len(self.template)} characters, limit {limits.TEMPLATE_CHARACTERS}")
        variables = {**special_tokens, "tools": None, "documents": None, **settings}
        variables["messages"] = [dict(turn) for turn in turns]
        given = len(json.dumps([variables["messages"], variables["tools"]], ensure_ascii=False))
        asked = {
            "variables": variables,
            "characters": limits.TEMPLATE_OUTPUT + given,
            "memory": limits.TEMPLATE_MEMORY + 64 * given,
        }
        with self._lock:
            answer = self._ask(asked)
        if "error" in answer:
            raise _problem(answer["error"])
        return answer["text"]

    def start(self) -> None:
        """So that the first conversation need not wait for it."""
        with self._lock:
            self._started()

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _ask(self, asked: dict[str, Any]) -> dict[str, str]:
        try:
            process = self._started()
            write_message(_pipe(process.stdin), asked)
            most = ESCAPED_BYTES * asked["characters"]
            found: dict[str, str] = _answer(process, limits.TEMPLATE_SECONDS, most)
            return found
        except BaseException as error:
            self._kill()
            if isinstance(error, TimeoutError):
                seconds = limits.TEMPLATE_SECONDS
                raise _problem(f"still running after {seconds:g} seconds") from error
            if isinstance(error, (OSError, EOFError)):
                raise _problem("its process died") from error
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        """Raises OSError, EOFError: no process can be started."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-c", BEGIN, *sys.path]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = process
        write_message(_pipe(process.stdin), self.template)
        _answer(process, START_SECONDS, SIZE)
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what it did not read
                _pipe(pipe).close()
        process.wait()


def _pipe(pipe: IO[bytes] | None) -> BinaryIO:
    assert pipe is not None
    return cast("BinaryIO", pipe)


def _answer(process: subprocess.Popen[bytes], seconds: float, most: int) -> Any:
    """Raises TimeoutError, EOFError; InputError: it is larger than `most` bytes."""
    source, deadline = _pipe(process.stdout).fileno(), time.monotonic() + seconds
    size = int.from_bytes(_read(source, SIZE, deadline), "little")
    if size > most + len('{"error": ""}'):
        raise _problem(f"more than {most} bytes of text")
    return json.loads(_read(source, size, deadline))


def _read(source: int, size: int, deadline: float) -> bytes:
    """Raises TimeoutError, EOFError."""
    found, ready = bytearray(), select.poll()
    ready.register(source, select.POLLIN)
    while len(found) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(1000 * left):
            raise TimeoutError
        piece = os.read(source, size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _problem(words: str) -> InputError:
    return InputError(f"chat template: {words}", HINT)
