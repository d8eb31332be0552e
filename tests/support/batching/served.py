"""`dsconv serve` in a process of its own, as people start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 60.0


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def send(self, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """-> (status, JSON or text)."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        if data is not None and "content-type" not in {name.lower() for name in headers}:
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def streamed(server: Server, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """The events of an answer, each as JSON, without the mark at its end."""
    data = json.dumps({**body, "stream": True}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[len(b"data: ") :])


@contextmanager
def serving(artifact: Path, *options: object, **environment: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "dsconv", "serve", artifact, "--port", 0, *options]
    process = subprocess.Popen(
        [str(word) for word in command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Server(_url(process), process)
    finally:
        process.kill()
        process.communicate()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    end = time.monotonic() + START_SECONDS
    said = []
    while time.monotonic() < end:
        line = process.stderr.readline()
        said.append(line)
        if "/v1" in line:
            return next(word for word in line.split() if word.startswith("http")).split("/v1")[0]
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"the server did not start: {''.join(said)}")
