"""Downloads from a stand-in for the hub on this machine: only what is needed, at one commit."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_line import Outcome, assert_refused, dsconv
from small_models import write_checkpoint

from dsconv.convert.hub import looks_like_hub_name

COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
NOT_NEEDED = (
    "pytorch_model.bin",
    "model.onnx",
    "model.gguf",
    "README.md",
    "modeling_evil.py",
    "onnx/config.json",
    "original/model.safetensors",
    "consolidated.safetensors",
)


class Hub(ThreadingHTTPServer):
    """Serves the files of one folder as model `org/small`, whatever the revision."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.revisions = {"main": COMMIT, "v1": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.main_moves = False
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        super().__init__(("127.0.0.1", 0), Handler)

    def fetched(self) -> set[str]:
        found = (re.match(r"GET /org/small/resolve/\w+/(.+)", call) for call in self.calls)
        return {match[1] for match in found if match}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.calls.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/org/small(?:/revision/([^/]+))?", path):
            return self.describe(match[1] or "main")
        if match := re.fullmatch(r"/api/models/org/small/tree/([^/]+)", path):
            return self.send([self.entry(name) for name in self.server.files])
        if match := re.fullmatch(r"/org/small/resolve/(\w+)/(.+)", path):
            return self.send_file(self.server.revisions[match[1]], match[2])
        self.refuse(401, "RepoNotFound")

    def describe(self, revision: str) -> None:
        revisions = self.server.revisions
        if revision not in revisions:
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": name} for name in self.server.files]
        self.send({"id": "org/small", "sha": revisions[revision], "siblings": siblings})
        if self.server.main_moves:
            revisions["main"] = OLD_COMMIT

    def entry(self, name: str) -> dict[str, object]:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}

    def send_file(self, commit: str, name: str) -> None:
        data = self.server.files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'}
        self.answer(200, data, headers)

    def send(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def serve(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "source", shards=2)
    for name in NOT_NEEDED:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"must not be fetched")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    yield from serve(model)


def call(endpoint: str, home: Path, *arguments: object) -> Outcome:
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }
    return dsconv(*arguments, environment=environment)


def endpoint(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_only_needed_files_are_fetched_and_the_commit_is_pinned(hub: Hub, tmp_path: Path) -> None:
    outcome = call(endpoint(hub), tmp_path, "inspect", "org/small", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["parameters"] > 0
    assert hub.fetched() == set(hub.files) - set(NOT_NEEDED)
    assert all(f"/resolve/{COMMIT}/" in call for call in hub.calls if "/resolve/" in call)


def test_a_push_during_the_download_does_not_mix_commits(hub: Hub, tmp_path: Path) -> None:
    hub.main_moves = True
    outcome = call(endpoint(hub), tmp_path, "inspect", "org/small", "--json")
    assert outcome.code == 0, outcome.err
    resolved = [call for call in hub.calls if "/resolve/" in call]
    assert resolved
    assert all(f"/resolve/{COMMIT}/" in call for call in resolved)


def test_a_second_run_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    call(endpoint(hub), tmp_path, "inspect", "org/small", "--json")
    hub.calls.clear()
    again = call(endpoint(hub), tmp_path, "inspect", "org/small", "--json")
    assert again.code == 0
    assert hub.fetched() == set()


def test_a_revision_is_fetched_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    outcome = call(endpoint(hub), tmp_path, "inspect", "org/small@v1", "--json")
    assert outcome.code == 0, outcome.err
    resolved = [call for call in hub.calls if "/resolve/" in call]
    assert resolved
    assert all(f"/resolve/{OLD_COMMIT}/" in call for call in resolved)


def test_a_download_can_be_quantized(hub: Hub, model: Path, tmp_path: Path) -> None:
    remote = call(endpoint(hub), tmp_path, "quantize", "org/small", "-o", tmp_path / "remote")
    assert remote.code == 0, remote.err
    local = dsconv("quantize", model, "-o", tmp_path / "local")
    assert local.code == 0, local.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("remote", "local")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["org/unknown", "org/small@v9"])
def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, name: str) -> None:
    assert_refused(call(endpoint(hub), tmp_path, "inspect", name), 5, name)
    assert hub.fetched() == set()


def test_a_name_that_no_hub_allows(hub: Hub, tmp_path: Path) -> None:
    assert_refused(call(endpoint(hub), tmp_path, "inspect", "a/b--c"), 3, "a/b--c")
    assert hub.calls == []


def test_a_model_with_pickles_only_is_refused_unfetched(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for hub in serve(folder):
        outcome = call(endpoint(hub), tmp_path, "quantize", "org/small", "-o", tmp_path / "out")
        assert_refused(outcome, 4, "safetensors")
        assert hub.fetched() == set()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", True),
        ("org/model@main", True),
        ("org/model@refs/pr/1", True),
        ("org/model@", False),
        ("model", False),
        ("a/b/c", False),
        ("./model", False),
        ("../model", False),
        ("/abs/model", False),
        ("~/model", False),
        ("org/mo del", False),
        ("org/model\n", False),
        ("org\\model", False),
        ("http://host/org/model", False),
        ("", False),
    ],
)
def test_what_looks_like_a_hub_name(text: str, expected: bool) -> None:
    assert looks_like_hub_name(text) is expected
