"""A process that holds one model (or the buffer of the bandwidth probe) and times it on request.

Each model has a process of its own, so that its load time and memory are its own. Requests and
answers are lines of JSON.

    python -m dsconv.runtime.bench.worker '{"path": "r1-onnx", "threads": 2, ...}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsconv import errors
from dsconv.errors import DsconvError, InputError
from dsconv.runtime.generate.timed import Runner, SessionRunner
from dsconv.runtime.memory import peak_rss_bytes
from dsconv.runtime.sessions.huge_pages import environment
from dsconv.runtime.sessions.load import DEFAULT_CACHE, load

OURS = "dsconv"
BANDWIDTH = "bandwidth"
LARGEST_TOKEN = 100  # random tokens below it: kernels do not care, and every vocabulary has them
LAST_CHARACTERS = 300  # of what a worker that died had said


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact (runtime `dsconv`), or a peer's model."""

    path: str
    threads: int
    runtime: str = OURS
    provider: str = "cpu"
    kv: str = DEFAULT_CACHE
    allow_fallback: bool = False


@dataclass(frozen=True)
class Opened:
    """What is known of a model once it is loaded; load_seconds holds its runtime's import.

    placement: which nodes run where, as in JSON; empty on the CPU.
    """

    runtime: str
    provider: str
    context_length: int
    load_seconds: float
    config: Mapping[str, Any]
    placement: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Timed:
    """An answer: the figure, the peak memory, and the processor seconds of the whole process."""

    value: float
    peak_rss_bytes: int
    cpu_seconds: float


class Worker:
    """The other end: a process and its answers. Processor seconds are counted up in `used`."""

    def __init__(self, subject: Subject) -> None:
        self.used = 0.0
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # close()
        # Ours start as the command line starts itself; a peer as its users start it.
        changed = environment() if subject.runtime == OURS else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(subject))],
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


# ---------------------------------------------------------------- inside the process


def tokens_of(count: int) -> list[int]:
    """The same random tokens for everyone; a longer text begins with a shorter one."""
    found: list[int] = np.random.default_rng(0).integers(3, LARGEST_TOKEN, count).tolist()
    return found


def open_subject(subject: Subject) -> tuple[Runner, Opened]:
    """Load it, and say how long that took."""
    start = time.perf_counter()
    runner: Runner
    runtime, config = subject.runtime, {}
    placement: list[dict[str, Any]] = []
    if subject.runtime == OURS:
        kv, allows = subject.kv, subject.allow_fallback
        loaded = load(subject.path, subject.provider, subject.threads, kv=kv, allow_fallback=allows)
        runner = SessionRunner(loaded.session)
        placement = loaded.placement.to_json() if loaded.placement else []
        runtime, config = loaded.runtime, dict(loaded.config)
    else:
        from .peers import find_peer

        peer = find_peer(subject.runtime)
        runner = peer.open_runner(subject.path, subject.threads, subject.kv)
    seconds = time.perf_counter() - start
    length = runner.context_length
    return runner, Opened(runtime, subject.provider, length, seconds, config, placement)


def _actions(subject: Subject, emit: Callable[[object], None]) -> dict[str, Callable[..., float]]:
    if subject.runtime == BANDWIDTH:
        from .bandwidth import ReadProbe

        return {"bandwidth": ReadProbe(subject.threads).bytes_per_second}
    runner, opened = open_subject(subject)
    emit(asdict(opened))
    return {
        "prefill": lambda count: runner.prefill(tokens_of(count)),
        "decode": lambda context, count: runner.decode(tokens_of(context), count),
    }


def serve(subject: Subject, requests: Sequence[str] | Any, emit: Callable[[object], None]) -> None:
    """Answer until there are no more requests."""
    try:
        actions = _actions(subject, emit)
        for line in requests:
            action, *arguments = json.loads(line)
            value = actions[action](*arguments)
            emit(asdict(Timed(value, peak_rss_bytes(), time.process_time())))
    except DsconvError as error:
        hint = error.hint
        emit({"exit_code": error.exit_code, "message": error.message, "hint": hint})


def main() -> None:
    # Runtimes print to stdout too: what they print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(
        Subject(**json.loads(sys.argv[1])),
        sys.stdin,
        lambda answer: print(json.dumps(answer), file=answers, flush=True),
    )


if __name__ == "__main__":
    main()
