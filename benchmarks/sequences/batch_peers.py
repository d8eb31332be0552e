"""Decoding many sequences at once: a native file beside the peers' own batching, in one run.

    python benchmarks/sequences/batch_peers.py FILE.dsq MODELS [--batch 1,4,16] [--context 512]
        [--decode 32] [--threads 2] [--rounds 3] [--only NAME,…] [--python NAME=PYTHON …]
        [-o OUT.json]

MODELS is the folder that `dsconv bench --peers` keeps: every peer's own quantization of the same
checkpoint (llama.cpp-int4, …). A peer that needs an environment of its own is given its
interpreter; dsconv must be installed there too. A peer without a model, or not installed, is left
out and named. Every round asks each runtime for each size once; the context of a sequence is not
timed. The factor is ours to a peer's within a round, its median over the rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dsconv.errors import DsconvError
from dsconv.runtime.bench.peers import PEERS
from dsconv.runtime.bench.process import Worker
from dsconv.runtime.bench.report import Figures
from dsconv.runtime.bench.subject import Subject
from dsconv.runtime.console import say


@dataclass
class Runtime:
    """A process, what it is called, and its rates by size of the batch."""

    name: str
    worker: Worker
    limit: int
    rates: dict[int, list[float]] = field(default_factory=dict)


def subjects(arguments: argparse.Namespace) -> Iterator[tuple[str, Subject]]:
    threads = arguments.threads
    yield "dsconv", Subject(arguments.file, threads)
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    for name, peer in PEERS.items():
        if arguments.only and name not in arguments.only.split(","):
            continue
        model = arguments.models / f"{name}-int{arguments.bits}"
        if not model.is_dir():
            say(f"{name} is left out: there is no {model}")
            continue
        if name not in pythons:
            try:
                peer.require()
            except DsconvError as error:
                say(f"{name} is left out: {error.message}: {error.hint}")
                continue
        yield name, Subject(str(model), threads, name, python=pythons.get(name, ""))


def opened(arguments: argparse.Namespace) -> Iterator[Runtime]:
    for name, subject in subjects(arguments):
        worker = Worker(subject)
        try:
            worker.open()
            limit = worker.batch_limit(arguments.context + arguments.decode)
        except DsconvError as error:
            say(f"{name} is left out: {error.message}")
            worker.kill()
            continue
        yield Runtime(name, worker, limit)


def measure(arguments: argparse.Namespace) -> list[Runtime]:
    sizes = [int(size) for size in arguments.batch.split(",")]
    runtimes = list(opened(arguments))
    try:
        for runtime in runtimes:  # untimed: wakes threads, loads pages
            runtime.worker.decode_many(16, min(max(sizes), runtime.limit), 2)
        for _ in range(arguments.rounds):
            for size in sizes:
                for runtime in runtimes:
                    if size > runtime.limit:
                        continue
                    count = arguments.decode
                    timed = runtime.worker.decode_many(arguments.context, size, count)
                    rate = size * count / timed.value
                    runtime.rates.setdefault(size, []).append(rate)
                    say(f"{runtime.name:18} {size:3} at once: {rate:7.1f} tokens/s")
    finally:
        for runtime in runtimes:
            runtime.worker.kill()
    return runtimes


def table(runtimes: list[Runtime]) -> str:
    sizes = sorted({size for runtime in runtimes for size in runtime.rates})
    lines = ["| tokens/s | " + " | ".join(f"{size} at once" for size in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    ours = runtimes[0]
    for runtime in runtimes:
        cells = [_cell(ours, runtime, size) for size in sizes]
        lines.append(f"| {runtime.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(ours: Runtime, runtime: Runtime, size: int) -> str:
    if size not in runtime.rates:
        return "-"
    found = f"{Figures.of(runtime.rates[size]).median:.1f}"
    if runtime is ours or size not in ours.rates:
        return found
    pairs = zip(ours.rates[size], runtime.rates[size], strict=True)
    return f"{found} ({Figures.of(mine / theirs for mine, theirs in pairs).median:.2f} ×)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("models", type=Path)
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="peers, by commas")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    runtimes = measure(arguments)
    print(table(runtimes))
    if arguments.output:
        found = {runtime.name: runtime.rates for runtime in runtimes}
        arguments.output.write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
