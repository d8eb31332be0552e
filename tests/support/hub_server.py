"""A stand-in for the Hugging Face hub and for ModelScope on this machine, with faults on demand.

It serves the folders ROOT/org/name as models, each at two commits with the same files. Large files
(LFS) are redirected to another host name, as the hub does with its store of large files.
`python hub_server.py ROOT` prints its address and serves until its standard input closes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".onnx")
BLOCK = 64 << 10
STALL = 30.0  # seconds; longer than any test waits


@dataclass
class Fault:
    """What goes wrong with the body of the file `name`, `times` times.

    status: answer with this instead. retry_after: in seconds, with it.
    truncate: bytes to send before the connection ends. drop: end it before any answer.
    flip: offset of a byte in the file to change. stall: stop sending after so many bytes.
    ignore_range: send the whole file. size_error: added to the size in the headers.
    other: the bytes of this file instead.
    """

    name: str
    times: int = 10**9
    status: int = 0
    retry_after: str | None = None
    truncate: int | None = None
    drop: bool = False
    flip: int | None = None
    stall: int | None = None
    ignore_range: bool = False
    size_error: int = 0
    other: Path | None = None


@dataclass(frozen=True)
class Call:
    """A request; `sent` counts bytes of the body of a file that went out."""

    method: str
    path: str
    host: str
    authorization: str | None
    range: str | None
    name: str = ""
    sent: int = 0


@dataclass(frozen=True)
class ServedFile:
    path: Path
    name: str

    @property
    def is_lfs(self) -> bool:
        return self.path.suffix in LFS_SUFFIXES

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return hash_of(self.path, hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        return hash_of(self.path, hashlib.sha1(b"blob %d\0" % self.size))

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_sha1


def hash_of(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return str(digest.hexdigest())


@dataclass
class Settings:
    """token: wanted for every file. rate: bytes per second of every connection.
    edit: changes the description of a model before it is sent. redirects: of LFS files, to the
    other host. main_moves: after the first description, `main` is another commit.
    """

    token: str | None = None
    rate: float = 0.0
    edit: Callable[[dict[str, Any]], Any] | None = None
    redirects: bool = True
    main_moves: bool = False
    listing_statuses: list[int] = field(default_factory=list)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path) -> None:
        self.settings = Settings()
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.revisions = {"main": COMMIT, "v1": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.revisions |= {"master": COMMIT, "refs/pr/1": OLD_COMMIT}
        self.lock = threading.Lock()
        self.models: dict[str, dict[str, ServedFile]] = {}
        for config in sorted(path for path in root.glob("*/*") if path.is_dir()):
            files = (path for path in sorted(config.rglob("*")) if path.is_file())
            served = [ServedFile(path, path.relative_to(config).as_posix()) for path in files]
            name = config.relative_to(root).as_posix()
            self.models[name] = {file.name: file for file in served}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store_url(self) -> str:
        """Of large files: the same server, another host."""
        return f"http://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what the tests are about."""

    def fetched(self) -> set[str]:
        """Names of the files of which a byte was sent."""
        return {call.name for call in self.calls if call.name}

    def sent(self, name: str) -> int:
        with self.lock:
            return sum(call.sent for call in self.calls if call.name == name)

    def fault_of(self, name: str, start: int, stop: int) -> Fault | None:
        """The fault that this answer has; counts it."""
        with self.lock:
            for fault in self.faults:
                fits = fault.flip is None or start <= fault.flip < stop
                if fault.name == name and fault.times > 0 and fits:
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: object) -> None:
        pass

    def note(self, name: str = "", sent: int = 0) -> None:
        headers = self.headers
        call = Call(
            self.command,
            unquote(self.path),
            headers.get("Host", ""),
            headers.get("Authorization"),
            headers.get("Range"),
            name,
            sent,
        )
        with self.server.lock:
            self.server.calls.append(call)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.describe(match[1], match[2] or "main")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self.list_tree(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/_store/([^/]+/[^/]+)/(.+)", path):
            return self.send_body(self.server.models[match[1]][match[2]], {})
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            return self.list_modelscope(match[1], query)
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
            return self.resolve(match[1], query.get("Revision", ""), query.get("FilePath", ""))
        self.refuse(404, "EntryNotFound")

    # ------------------------------------------------------------ descriptions

    def files_of(self, model: str, revision: str) -> dict[str, ServedFile] | None:
        files = self.server.models.get(model)
        if files is None:
            self.refuse(401, "RepoNotFound")
        elif revision not in self.server.revisions:
            self.refuse(404, "RevisionNotFound")
            files = None
        return files

    def describe(self, model: str, revision: str) -> None:
        server = self.server
        if server.settings.listing_statuses:
            return self.refuse(server.settings.listing_statuses.pop(0), "Busy")
        files = self.files_of(model, revision)
        if files is None:
            return
        siblings = [{"rfilename": file.name, **self.entry(file)} for file in files.values()]
        commit = server.revisions[revision]
        content: Any = {"id": model, "sha": commit, "siblings": siblings}
        if server.settings.edit is not None:
            content = server.settings.edit(content)
        self.send_json(content)
        if server.settings.main_moves:
            server.revisions["main"] = OLD_COMMIT

    def entry(self, file: ServedFile) -> dict[str, Any]:
        content: dict[str, Any] = {"size": file.size, "blobId": file.git_sha1}
        if file.is_lfs:
            content["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
        return content

    def list_tree(self, model: str, revision: str) -> None:
        files = self.files_of(model, revision)
        if files is None:
            return
        entries = []
        for file in files.values():
            entry = {"type": "file", "path": file.name, "size": file.size, "oid": file.git_sha1}
            if file.is_lfs:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
            entries.append(entry)
        self.send_json(entries)

    def list_modelscope(self, model: str, query: dict[str, str]) -> None:
        files = self.server.models.get(model)
        commit = self.server.revisions.get(query.get("Revision", ""))
        if files is None or commit is None:
            content = {"Code": 10010205001, "Data": None, "Message": "not found", "Success": False}
            return self.send_json(content, 404)
        entries = [
            {
                "Type": "blob",
                "Name": file.path.name,
                "Path": file.name,
                "Size": file.size,
                "Sha256": file.sha256,
                "Revision": commit,
                "CommittedDate": 1700000000,
            }
            for file in files.values()
        ]
        folders = {str(Path(name).parent) for name in files} - {"."}
        entries += [{"Type": "tree", "Name": name, "Path": name} for name in sorted(folders)]
        latest = {"Id": "", "ShortId": commit[:8]}
        self.send_json({"Code": 200, "Data": {"Files": entries, "LatestCommitter": latest}})

    # ------------------------------------------------------------ bodies

    def resolve(self, model: str, revision: str, name: str) -> None:
        files = self.files_of(model, revision)
        if files is None:
            return
        file = files.get(name)
        if file is None:
            return self.refuse(404, "EntryNotFound")
        wanted = self.server.settings.token
        if wanted is not None and self.headers.get("Authorization") != f"Bearer {wanted}":
            return self.refuse(401, "GatedRepo")
        headers = {
            "X-Repo-Commit": self.server.revisions[revision],
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
        }
        if file.is_lfs and self.server.settings.redirects:
            headers["X-Linked-Etag"] = f'"{file.etag}"'
            headers["X-Linked-Size"] = str(file.size)
            headers["Location"] = f"{self.server.store_url}/_store/{model}/{name}"
            self.note()
            return self.answer(302, b"", headers)
        self.send_body(file, headers)

    def send_body(self, file: ServedFile, headers: dict[str, str]) -> None:
        size = file.size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop = (0, size)
        if asked:
            start, stop = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size)
        is_body = self.command == "GET"
        fault = self.server.fault_of(file.name, start, stop) if is_body else None
        fault = fault or Fault(file.name)
        if fault.drop:
            self.note()
            return self.hang_up()
        if fault.status:
            extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self.note()
            return self.answer(fault.status, b"no", extra)
        if start >= size > 0:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        status = 206 if asked and not fault.ignore_range else 200
        if status == 200:
            start, stop = 0, size
        self.send_response(status)
        claimed = size + fault.size_error
        if status == 206:
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{claimed}"}
            claimed = stop - start + fault.size_error
        for name, value in {**headers, "Content-Length": str(claimed)}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = 0
        try:
            if is_body:
                for count in self.send_bytes(file, start, stop, fault):
                    sent += count
        finally:
            self.note(file.name, sent)
        if is_body and (fault.truncate is not None or fault.size_error):
            self.hang_up()

    def send_bytes(self, file: ServedFile, start: int, stop: int, fault: Fault) -> Iterator[int]:
        """Yield the number of bytes after each block."""
        if fault.truncate is not None:
            stop = min(stop, start + fault.truncate)
        rate = self.server.settings.rate
        is_plain = fault.flip is None and fault.stall is None and not rate
        with (fault.other or file.path).open("rb") as content:
            position = start
            while position < stop:
                if is_plain:
                    output = self.connection.fileno()
                    count = os.sendfile(output, content.fileno(), position, stop - position)
                else:
                    content.seek(position)
                    block = bytearray(content.read(min(BLOCK, stop - position)))
                    if fault.flip is not None and 0 <= fault.flip - position < len(block):
                        block[fault.flip - position] ^= 0x40
                    if fault.stall is not None and position - start >= fault.stall:
                        time.sleep(STALL)
                    self.wfile.write(block)
                    count = len(block)
                    if rate:
                        time.sleep(count / rate)
                if not count:
                    break
                position += count
                yield count

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------ answers

    def send_json(self, content: object, status: int = 200) -> None:
        self.note()
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.note()
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[HubServer]:
    """Serve a folder of models in threads of this process."""
    with HubServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with serving(Path(sys.argv[1])) as standing:
        print(standing.url, flush=True)
        sys.stdin.read()
