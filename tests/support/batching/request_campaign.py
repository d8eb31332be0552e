"""Many mutated requests to a server, and what it has left afterwards."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutated_requests import Mutated, Mutator
from served import Server

WAIT = 0.3  # seconds for an answer to what may have been half a request
LONG = 60.0
SETTLE = 20.0


@dataclass
class Findings:
    """statuses: 0 is a connection that was closed without an answer, -1 no answer yet."""

    statuses: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, problem: str | None) -> None:
        with self.lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if problem is not None:
                self.wrong.append(problem)


def campaign(server: Server, seed: int, count: int, threads: int = 4) -> Findings:
    """Every request on a connection of its own, some at the same time."""
    found = Findings()

    def work(number: int) -> None:
        mutator = Mutator(seed * 1000 + number)
        for _ in range(count // threads):
            one = mutator.next()
            try:
                status, problem = send(server.port, one)
            except OSError as error:  # closed while it was being written
                status, problem = 0, str(error) if one.good else None
            found.note(status, problem and f"{problem}: {one.data[:400]!r}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def send(port: int, one: Mutated) -> tuple[int, str | None]:
    """-> (status, what is wrong with the answer)."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as raw:
        raw.sendall(one.data)
        raw.settimeout(WAIT if one.waits else LONG)
        response = http.client.HTTPResponse(raw, method=one.data[:4].decode("latin-1"))
        try:
            response.begin()
            status, body = response.status, response.read()
        except TimeoutError:
            return -1, None if one.waits else "no answer"
        except (http.client.HTTPException, ConnectionError):
            return 0, "closed without an answer" if one.good else None
        finally:
            response.close()
    return status, _wrong(one, status, body, response.headers.get("content-type", ""))


def _wrong(one: Mutated, status: int, body: bytes, kind: str) -> str | None:
    if status >= 500 or (one.good and status != 200):
        return f"status {status}, {body[:300]!r}"
    if b"an error of the server" in body:
        return f"an error in a stream, {body[-300:]!r}"
    if status >= 400 and body:
        try:
            said: Any = json.loads(body)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            return f"status {status} without an error in JSON, {body[:200]!r}"
        return None if isinstance(said, str) and said else "an error without words"
    return None


@dataclass(frozen=True)
class State:
    """Of a server that has nothing to do. texts: in its batch or waiting."""

    resident: int
    files: int
    threads: int
    texts: int


def settled(server: Server) -> State:
    """Once all texts have ended and all connections are closed, those of this question too; or
    after a while."""
    end = time.monotonic() + SETTLE
    place = f"/proc/{server.process.pid}"
    while True:
        texts = gauge(server, "texts_running") + gauge(server, "texts_waiting")
        while _connections(server) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)  # the kernel's table is a moment ahead of the server
        files, threads = (len(os.listdir(f"{place}/{kind}")) for kind in ("fd", "task"))
        if not texts or time.monotonic() > end:
            return State(server.resident_bytes(), files, threads, texts)


def gauge(server: Server, name: str) -> int:
    text = str(server.send("/metrics")[1])
    line = next(line for line in text.splitlines() if line.startswith(f"dsconv_{name} "))
    return int(float(line.split()[-1]))


def _connections(server: Server) -> int:
    """Sockets of the server that are connected, by the kernel's table."""
    port = f":{server.port:04X}"
    count = 0
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        count += local.endswith(port) and state in ("01", "08")  # established, close-wait
    return count
