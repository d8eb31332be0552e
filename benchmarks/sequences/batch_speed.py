"""Decoding many sequences at once with the native engine, against one, in the same run.

    python benchmarks/sequences/batch_speed.py FILE.dsq [--batch 1,4,16,32] [--context 512]
        [--kv fp16|int8]
        [--activations own,int16] [--threads 2] [--rounds 3] [-o OUT.json]

Every size of a batch decodes `--steps` tokens of each sequence after `--context` tokens of its own;
sizes take turns, so that a disturbance meets all of them. The figure of a size is the median over
rounds, its factor the median of the factors within a round. Batch 1 of the engine alone (no
Batch, its own precision) is `single`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.console import say
from dsconv.runtime.memory import free_memory_bytes
from dsconv.runtime.sessions.load import load
from dsconv.runtime.sessions.native import NativeSession


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all sequences together."""

    activations: str
    batch: int
    tokens_per_second: float
    times_one: float


class Decoding:
    """Sequences with their contexts, ready to decode."""

    def __init__(self, session: NativeSession, activations: str, sizes: list[int], context: int):
        cache = free_memory_bytes() * 3 // 4
        self._batch = NativeBatch(session, activations, cache, max(sizes))
        self._context = context
        random = np.random.default_rng(0)
        self._sequences = []
        for _ in range(max(sizes)):
            number = self._batch.add()
            ids = random.integers(0, self._batch.vocabulary, context).tolist()
            for start in range(0, context, self._batch.tokens_per_pass):
                part = ids[start : start + self._batch.tokens_per_pass]
                self._batch.step([Piece(number, tuple(part), Want.NONE)])
            self._sequences.append(number)

    def time(self, size: int, steps: int) -> float:
        """Seconds of a pass."""
        some = self._sequences[:size]
        pieces = [Piece(number, (7 + number,), Want.LAST) for number in some]
        self._batch.step(pieces)
        start = time.perf_counter()
        for _ in range(steps):
            self._batch.step(pieces)
        seconds = (time.perf_counter() - start) / steps
        for number in some:
            self._batch.truncate(number, self._context)
        return seconds


def single(session: NativeSession, context: int, steps: int) -> float:
    session.truncate(context)
    session.decode(7)
    start = time.perf_counter()
    for _ in range(steps):
        session.decode(7)
    seconds = (time.perf_counter() - start) / steps
    session.truncate(context)
    return seconds


def measure(arguments: argparse.Namespace) -> list[Speed]:
    sizes = [int(size) for size in arguments.batch.split(",")]
    loaded = load(arguments.file, threads=arguments.threads, kv=arguments.kv)
    session = loaded.session
    assert isinstance(session, NativeSession)
    speeds = []
    session.prefill(np.random.default_rng(0).integers(0, 1000, arguments.context).tolist())
    for activations in arguments.activations.split(","):
        decoding = Decoding(session, activations, sizes, arguments.context)
        seconds: dict[int, list[float]] = {size: [] for size in (0, *sizes)}
        for _ in range(arguments.rounds):
            seconds[0].append(single(session, arguments.context, arguments.steps))
            for size in sizes:
                seconds[size].append(decoding.time(size, arguments.steps))
        for size, found in seconds.items():
            rate = median(max(size, 1) / second for second in found)
            ones = seconds[1] if 1 in seconds else seconds[0]
            times = median(max(size, 1) * one / s for one, s in zip(ones, found, strict=True))
            speeds.append(Speed(activations, size, rate, times))
            name = f"batch {size}" if size else "single"
            say(f"{activations:6} {name:9} {rate:7.1f} tokens/s, {times:5.2f} times batch 1")
        del decoding
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--batch", default="1,4,16,32")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--kv", default="fp16")
    parser.add_argument("--activations", default="own,int16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("-o", type=Path)
    arguments = parser.parse_args()
    speeds = measure(arguments)
    if arguments.o:
        arguments.o.write_text(json.dumps([asdict(speed) for speed in speeds], indent=2))


if __name__ == "__main__":
    main()
