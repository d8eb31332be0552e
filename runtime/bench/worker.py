"""A process that holds one model (or the buffer of the bandwidth probe) and times it on request.

Each model has a process of its own, so that its load time and memory are its own. Requests and
answers are lines of JSON.

    python -m dsconv.runtime.bench.worker '{"path": "r1-onnx", "threads": 2, ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dsconv.errors import DsconvError
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.generate.timed import BatchRunner, Runner, SessionRunner
from dsconv.runtime.memory import peak_rss_bytes
from dsconv.runtime.sessions.load import load

from .machine import ReadProbe
from .peers import find_peer
from .subject import BANDWIDTH, OURS, Opened, Subject, Timed

LARGEST_TOKEN = 100  # random tokens below it: kernels do not care, and every vocabulary has them


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
        options = BatchOptions(cache_bytes=subject.cache_bytes)
        runner = SessionRunner(loaded.session, lambda: open_batch(loaded, options))
        placement = loaded.placement.to_json() if loaded.placement else []
        runtime, config = loaded.runtime, dict(loaded.config)
    else:
        peer = find_peer(subject.runtime)
        runner = peer.open_runner(subject.path, subject.threads, subject.kv)
    seconds = time.perf_counter() - start
    length = runner.context_length
    return runner, Opened(runtime, subject.provider, length, seconds, config, placement)


def _actions(subject: Subject, emit: Callable[[object], None]) -> dict[str, Callable[..., float]]:
    if subject.runtime == BANDWIDTH:
        return {"bandwidth": ReadProbe(subject.threads).bytes_per_second}
    runner, opened = open_subject(subject)
    emit(asdict(opened))
    return {
        "prefill": lambda count: runner.prefill(tokens_of(count)),
        "decode": lambda context, count: runner.decode(tokens_of(context), count),
        "batch_limit": lambda positions: _batch_limit(runner, positions),
        "decode_many": lambda *sizes: _decode_many(runner, *sizes),
    }


def _batch_limit(runner: Runner, positions: int) -> int:
    return runner.batch_limit(positions) if isinstance(runner, BatchRunner) else 0


def _decode_many(runner: Runner, context: int, batch: int, count: int) -> float:
    assert isinstance(runner, BatchRunner)
    return runner.decode_many(tokens_of(context), batch, count)


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
