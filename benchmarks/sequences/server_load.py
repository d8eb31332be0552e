"""The server under load, beside the same requests given to its scheduler without HTTP.

    python benchmarks/sequences/server_load.py ARTIFACT TEXT [--clients 32] [--requests 20]
        [--tokens 48]
        [--rounds 1] [--check 16] [--soak 2000] [--json]

So many clients ask one request after the other: chat and completions, streamed and not, a third of
them cut off midway; besides one huge prompt and ten malformed bodies. TEXT is cut into prompts.
Clients are threads of a process of their own, with Python's own HTTP client. Compared are the time
to the first token of a stream (from its request to its first event with text, or from `submit` to
the first token), and tokens per second of all clients together. Every text has to be the one that
the scheduler wrote alone, every --check'th is also written by a session, as `dsconv run` does.
Then memory and open files of the server are looked at over --soak small requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support" / "batching"))
from served import Server, serving

from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.generate.answer import UserPrompt, Wanted, answer
from dsconv.runtime.generate.model_settings import wanted_answer
from dsconv.runtime.generate.written_text import WrittenText
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.scheduler import Scheduler
from dsconv.runtime.serve.chat import read_chat
from dsconv.runtime.serve.choice import Plan
from dsconv.runtime.serve.completions import read_completion
from dsconv.runtime.serve.served import Limits, Served, serve_model
from dsconv.runtime.sessions.load import Loaded, load, load_rounding

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
MALFORMED = (
    *(b"", b"{", b"[]", b'"text"', b'{"prompt": 3.5}', b'{"prompt": "a", "n": -1}', b"\xff\xfe"),
    *(b'{"messages": []}', b'{"prompt": "a", "unheard_of": 1}', b"[" * 10_000),
)
SMALL_TOKENS = 4  # of an answer while memory is looked at


@dataclass(frozen=True)
class Ask:
    """One request. cut: the client goes away after so many pieces of text."""

    path: str
    prompt: str
    tokens: int
    seed: int
    stream: bool
    cut: int | None = None

    def body(self) -> dict[str, Any]:
        said: dict[str, Any] = {"prompt": self.prompt}
        if self.path == CHAT:
            said = {"messages": [{"role": "user", "content": self.prompt}]}
        said |= {"max_tokens": self.tokens, "seed": self.seed, "temperature": 0.8 * (self.seed % 2)}
        if self.stream:
            said |= {"stream": True, "stream_options": {"include_usage": True}}
        return said


@dataclass
class Got:
    """first: seconds to the first text, of streams."""

    text: str = ""
    tokens: int = 0
    status: int = 0
    first: float | None = None


@dataclass
class Load:
    """What one way of asking brought, by client and request."""

    seconds: float = 0.0
    got: dict[tuple[int, int], Got] = field(default_factory=dict)
    client_seconds: float = 0.0  # of the processor

    @property
    def tokens_per_second(self) -> float:
        return sum(got.tokens for got in self.got.values()) / self.seconds

    @property
    def first_token(self) -> float:
        return statistics.median(got.first for got in self.got.values() if got.first is not None)


def plan_asks(text: str, given: argparse.Namespace, context: int, seed: int) -> list[list[Ask]]:
    """For every client what it asks, the same for the same arguments."""
    rng, found = random.Random(seed), []
    words = text.split()
    for client in range(given.clients):
        asks = []
        for number in range(given.requests):
            size, start = rng.choice((8, 30, 90, 250)), rng.randrange(len(words) - 300)
            stream = rng.random() < 0.6
            cut = rng.randint(1, given.tokens // 3) if (client + number) % 3 == 0 else None
            asks.append(
                Ask(
                    rng.choice((CHAT, PLAIN)),
                    f"{seed}.{client}.{number} "
                    + " ".join(words[start : start + min(size, context // 8)]),
                    rng.randint(given.tokens // 4, given.tokens),
                    rng.randrange(1 << 31),
                    stream or cut is not None,
                    cut,
                )
            )
        found.append(asks)
    huge = f"{seed} " + " ".join((words * 20)[: context // 2])
    found[0].append(Ask(PLAIN, huge, given.tokens, 1, True))
    return found


# --------------------------------------------------------------------------------- over HTTP


def ask(port: int, path: str, body: bytes, cut: int | None = None) -> Got:
    """One request on a connection of its own."""
    got, start = Got(), time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        got.status = response.status
        if not response.headers["content-type"].startswith("text/event-stream"):
            _read_whole(json.loads(response.read()), got)
            return got
        pieces = 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            piece = "".join(_text(choice) for choice in event["choices"])
            if piece:
                got.text += piece
                got.first = got.first or time.perf_counter() - start
                pieces += 1
                if pieces == cut:
                    got.tokens = pieces
                    return got
            if event.get("usage"):
                got.tokens = event["usage"]["completion_tokens"]
        return got
    finally:
        connection.close()


def _read_whole(made: dict[str, Any], got: Got) -> None:
    if "choices" in made:
        got.text = "".join(map(_text, made["choices"]))
        got.tokens = made["usage"]["completion_tokens"]


def _text(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return str((choice.get("delta") or choice.get("message") or {}).get("content") or "")


def clients(port: int, asks: list[list[Ask]], results: Any) -> None:
    """In a process of its own: a thread per client, one more that asks what makes no sense."""
    load = Load()

    def work(client: int) -> None:
        for number, one in enumerate(asks[client]):
            body = json.dumps(one.body()).encode()
            load.got[client, number] = ask(port, one.path, body, one.cut)

    def malform() -> None:
        for number, body in enumerate(MALFORMED):
            load.got[-1, number] = ask(port, (CHAT, PLAIN)[number % 2], body)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(len(asks))]
    threads.append(threading.Thread(target=malform))
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds, load.client_seconds = time.perf_counter() - start, time.process_time()
    results.put(load)


def over_http(port: int, asks: list[list[Ask]]) -> Load:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=clients, args=(port, asks, results))
    process.start()
    found: Load = results.get()
    process.join()
    return found


# ------------------------------------------------------------------------------ without HTTP


def plan_of(one: Ask, served: Served) -> Plan:
    body = replace(one, stream=False).body()
    read = read_chat if one.path == CHAT else read_completion
    return read(body, served).plans()[0]


class Bare:
    """The scheduler, and clients that submit their next request when the last one ended."""

    def __init__(self, loaded: Loaded, asks: list[list[Ask]], served: Served) -> None:
        self._scheduler = Scheduler(open_batch(loaded))
        self._asks = asks
        self._plans = [[plan_of(one, served) for one in some] for some in asks]
        self.load = Load()
        self.tokens: dict[tuple[int, int], list[int]] = {}

    def run(self) -> Load:
        start = time.perf_counter()
        for client in range(len(self._asks)):
            self._submit(client, 0)
        self._scheduler.run()
        self.load.seconds = time.perf_counter() - start
        self._scheduler.close()
        return self.load

    def _submit(self, client: int, number: int) -> None:
        if number == len(self._asks[client]):
            return
        plan, one = self._plans[client][number], self._asks[client][number]
        got = self.load.got[client, number] = Got()
        tokens = self.tokens[client, number] = []
        start = time.perf_counter()

        def take(token: int, logits: object) -> None:
            tokens.append(token)
            if got.first is None and one.stream:
                got.first = time.perf_counter() - start
            got.tokens += 1
            if got.tokens == one.cut:
                self._scheduler.cancel(job)
                self._submit(client, number + 1)

        def done(outcome: Outcome) -> None:
            assert outcome.error is None, outcome.error
            self._submit(client, number + 1)

        job = self._scheduler.submit(
            Request(plan.tokens, plan.max_tokens, plan.sampling, plan.stop_ids, take), done
        )


# -------------------------------------------------------------------------------------- checks


def texts_of(bare: Bare, served: Served, asks: list[list[Ask]]) -> dict[tuple[int, int], str]:
    found = {}
    for (client, number), tokens in bare.tokens.items():
        one = asks[client][number]
        plan = plan_of(one, served)
        text = WrittenText(
            served.tokenizer, plan.tokens, inside=plan.inside, split=one.path == CHAT
        )
        for token in tokens:
            text.take(token)
        text.finish()
        found[client, number] = text.answer.strip() if one.path == CHAT else text.answer
    return found


def differences(
    artifact: str, asks: list[list[Ask]], http_load: Load, texts: dict[Any, str], every: int
) -> tuple[int, int, int]:
    """-> (lost or without their text, texts that the batch wrote otherwise, that `run` did)."""
    lost = other = runs = 0
    loaded, count = load_rounding(artifact, 0, "fp16", "own"), 0
    for client, some in enumerate(asks):
        for number, one in enumerate(some):
            got = http_load.got.get((client, number), Got())
            lost += got.status != 200
            if one.cut is not None and got.tokens == one.cut:
                continue
            other += got.text != texts[client, number]
            count += 1
            if every and count % every == 0:
                runs += got.text != _as_run(loaded, one)
    return lost, other, runs


def _as_run(loaded: Loaded, one: Ask) -> str:
    loaded.session.reset()
    settings = {"seed": one.seed, "temperature": 0.8 * (one.seed % 2), "max_tokens": one.tokens}
    wanted: Wanted = wanted_answer(loaded, settings)
    made = answer(loaded, UserPrompt(one.prompt, raw=one.path == PLAIN), wanted)
    return made.text if one.path == CHAT else made.written


def soak(server: Server, asks: list[list[Ask]], count: int) -> list[tuple[int, int, int]]:
    """Small requests, a third cut off -> (requests so far, resident bytes, open files)."""
    small = [[replace(one, tokens=SMALL_TOKENS) for one in some] for some in asks]
    small = [
        [replace(one, cut=min(one.cut or 9, 2) if one.cut else None) for one in some]
        for some in small
    ]
    each, found, done = sum(map(len, small)), [], 0
    while done <= count:
        over_http(server.port, small)
        done += each
        files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        found.append((done, server.resident_bytes(), files))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("text", type=Path)
    for name, default in (("clients", 32), ("requests", 20), ("tokens", 48), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--check", type=int, default=16)
    parser.add_argument("--soak", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    loaded = load(given.artifact)
    served = serve_model(loaded, "m", Limits(), open_batch(loaded).context_length)
    text, context = given.text.read_text("utf-8"), min(served.context, 4096)
    bares, loads = [], []
    with serving(Path(given.artifact), "--name", "m") as server:
        for number in range(given.rounds):  # in turns: a machine is not always as fast
            # Each begins in its own way, or the server would know it from the last round.
            asks = plan_asks(text, given, context, given.seed + number)
            bare = Bare(loaded, asks, served)
            bares.append(figures(bare.run()))
            found = over_http(server.port, asks)
            loads.append(figures(found))
        result: dict[str, Any] = {"bare": medians(bares), "server": medians(loads)}
        memory = soak(server, asks, given.soak) if given.soak else []
        end = server.send("/metrics")[1]
    result["memory"] = [dict(zip(("requests", "rss", "files"), m, strict=True)) for m in memory]
    result["malformed"] = [found.got[-1, n].status for n in range(len(MALFORMED))]
    result["left"] = [line for line in end.splitlines() if line.startswith("dsconv_texts_")]
    texts = texts_of(bare, served, asks)
    lost, other, runs = differences(given.artifact, asks, found, texts, given.check)
    result |= {"lost": lost, "other_than_batch": other, "other_than_run": runs}
    print(json.dumps(result, indent=1) if given.json else table(result))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def figures(load: Load) -> dict[str, float]:
    return {
        "seconds": load.seconds,
        "tokens_per_second": load.tokens_per_second,
        "first_token_p50": load.first_token,
        "client_seconds": load.client_seconds,
    }


def table(result: dict[str, Any]) -> str:
    bare, server = result["bare"], result["server"]
    lines = [f"{'':24}{'scheduler':>12}{'server':>12}{'ratio':>8}"]
    for name in ("seconds", "tokens_per_second", "first_token_p50"):
        ratio = server[name] / bare[name]
        lines.append(f"{name:24}{bare[name]:12.3f}{server[name]:12.3f}{ratio:8.2f}")
    lines += [f"{name:24}{result[name]}" for name in ("lost", "other_than_batch", "other_than_run")]
    lines += [f"malformed: {result['malformed']}", *result["left"]]
    lines += [
        f"{m['requests']} requests: {m['rss'] / 2**20:.1f} MiB, {m['files']} files"
        for m in result["memory"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
