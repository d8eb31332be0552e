"""Clients that take their time, or everything that they can get: others are served on."""

from __future__ import annotations

import json
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from request_campaign import gauge, settled
from served import Server, serving
from served_models import served_model

PATIENCE = 1.0
OPTIONS = ("--threads", 1, "--name", "tiny", "--drain-timeout", 1)
LIMITS = ("--idle-timeout", PATIENCE, "--slow-timeout", PATIENCE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_model(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with serving(artifact, *OPTIONS, *LIMITS) as found:
        yield found


def request(body: bytes = b"", path: str = "/v1/completions", length: int | None = None) -> bytes:
    head = (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json")
    size = len(body) if length is None else length
    return "\r\n".join([*head, f"content-length: {size}", "", ""]).encode() + body


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def seconds_until_closed(raw: socket.socket, drip: bytes) -> float:
    """Sending a byte now and then -> after how long the server has had enough."""
    start = time.monotonic()
    while time.monotonic() - start < 10:
        try:
            if select.select([raw], [], [], 0.1)[0] and not raw.recv(4096):
                break
            raw.sendall(drip)
        except OSError:
            break
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nx: ", b"y"),
        (request(b'{"prompt": "', length=5000), b"y"),
        (request(b'{"prompt": "', "/nothing", 5000), b"y"),
        (request(b"{", "/health", 5000), b"y"),
        (b"", b""),
    ],
    ids=["head", "body", "body of no use", "body of a wrong method", "nothing"],
)
def test_what_trickles_in_comes_to_an_end(server: Server, begin: bytes, drip: bytes) -> None:
    with connect(server) as raw:
        raw.sendall(begin)
        found: list[float] = []
        thread = threading.Thread(target=lambda: found.append(seconds_until_closed(raw, drip)))
        thread.start()
        assert server.send("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
        thread.join()
    assert 0.5 * PATIENCE < found[0] < 3 * PATIENCE + 1
    assert settled(server).texts == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_does_not_read_loses_its_texts(server: Server, stream: bool) -> None:
    before = settled(server)
    body = {"prompt": "hello", "n": 64, "stream": stream, "ignore_eos": True, "logprobs": 5}
    body["max_tokens"] = 1500 if stream else 300
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", server.port))
    with raw:
        raw.sendall(request(json.dumps(body).encode()))
        end = time.monotonic() + 60
        while not gauge(server, "texts_running") and time.monotonic() < end:
            time.sleep(0.01)
        after = settled(server)  # though it holds its end of the connection
        assert after.texts == 0
        assert after.files <= before.files


def test_one_connection_for_many_requests(server: Server) -> None:
    """Also those that do not wait for an answer before the next."""
    one = request(b'{"prompt": "a", "max_tokens": 1, "seed": 1}')
    with connect(server) as raw:
        for count in (1, 40, 1):
            raw.sendall(one * count)
            got = b""
            while got.count(b'"usage"') < count:
                piece = raw.recv(65536)
                assert piece, got[-300:]
                got += piece
            assert got.count(b"HTTP/1.1 200") == count
    assert settled(server).texts == 0


def test_more_connections_than_may_be(artifact: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this process may not open so many files")
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(artifact, *OPTIONS) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
        held: list[socket.socket] = []
        try:
            before = settled(server)
            for _ in range(1200):
                held.append(connect(server))
                held[-1].sendall(b"POST ")
            assert server.send("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
            assert select.select(held[:100], [], [], 5)[0], "the oldest ones have made room"
        finally:
            for raw in held:
                raw.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
        assert settled(server).files <= before.files


def test_the_end_comes_in_time(artifact: Path) -> None:
    """With a text that would take long, half a request, and a reader that does not read."""
    with serving(artifact, *OPTIONS, "--idle-timeout", 60, "--slow-timeout", 60) as server:
        long = {"prompt": "a", "max_tokens": 2000, "n": 128, "ignore_eos": True, "stream": True}
        with connect(server) as half, connect(server) as reader, connect(server) as idle:
            half.sendall(request(b'{"prompt"', length=500))
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            reader.sendall(request(json.dumps(long).encode()))
            while not gauge(server, "texts_running"):
                time.sleep(0.01)
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.send("/v1/completions", {"prompt": "a"})[0] == 503
            assert server.process.wait(30) == 0
            assert time.monotonic() - start < 8  # 1 for the texts, 2 for answers, a pass
