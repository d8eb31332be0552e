"""This end of a worker: its process, and its answers to requests."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from dsconv import errors
from dsconv.errors import DsconvError, InputError
from dsconv.runtime.sessions.huge_pages import environment

from .subject import OURS, Opened, Subject, Timed

WORKER = "dsconv.runtime.bench.worker"
LAST_CHARACTERS = 300  # of what a worker that died had said


class Worker:
    """A process that holds a subject. Its processor seconds are counted up in `used`."""

    def __init__(self, subject: Subject) -> None:
        self.used = 0.0
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # close()
        # Ours start as the command line starts itself; a peer as its users start it.
        changed = environment() if subject.runtime == OURS else None
        self._process = subprocess.Popen(
            [subject.python or sys.executable, "-m", WORKER, json.dumps(asdict(subject))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=changed,
        )
        self.subject = subject

    def open(self) -> Opened:
        """Wait until the model is loaded."""
        return Opened(**self._answer())

    def prefill(self, tokens: int) -> Timed:
        return self._ask("prefill", tokens)

    def decode(self, context: int, tokens: int) -> Timed:
        return self._ask("decode", context, tokens)

    def batch_limit(self, positions: int) -> int:
        return int(self._ask("batch_limit", positions).value)

    def decode_many(self, context: int, batch: int, tokens: int) -> Timed:
        return self._ask("decode_many", context, batch, tokens)

    def bandwidth(self) -> Timed:
        return self._ask("bandwidth")

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def _ask(self, action: str, *arguments: int) -> Timed:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it said last is in the answer's error
            print(json.dumps([action, *arguments]), file=self._process.stdin, flush=True)
        timed = Timed(**self._answer())
        self.used = timed.cpu_seconds
        return timed

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: Any = json.loads(line) if line else self._last_words()
        if "message" in answer:
            raise _error(**answer)
        found: Mapping[str, Any] = answer
        return found

    def _last_words(self) -> dict[str, Any]:
        code = self._process.wait()
        self._errors.seek(0)
        said = " ".join(self._errors.read().split())[-LAST_CHARACTERS:]
        message = f"{self.subject.path}: its process ended with code {code}: {said}"
        hint = "not enough memory, or a fault in the runtime: measure it alone, or less context"
        return {"exit_code": InputError.exit_code, "message": message, "hint": hint}


def _error(exit_code: int, message: str, hint: str) -> DsconvError:
    """The error that a worker sent."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kind = next(k for k in classes if getattr(k, "exit_code", None) == exit_code)
    found: DsconvError = kind(message, hint)
    return found
