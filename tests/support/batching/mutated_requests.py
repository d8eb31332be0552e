"""Requests as no client should send them, made from good ones by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}),
    (
        CHAT,
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "brief"},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "2", "tool_call_id": "c", "name": "f"},
            ],
            "max_completion_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    (CHAT, {"messages": [{"role": "user", "content": "é€𝄞"}], "tools": [TOOL], "max_tokens": 2}),
    (PLAIN, {"prompt": "hello", "max_tokens": 3, "seed": 5, "temperature": 0.7, "top_p": 0.9}),
    (
        PLAIN,
        {
            "prompt": ["a", "b€"],
            "max_tokens": 2,
            "echo": True,
            "logprobs": 2,
            "stream": True,
            "stop": ["x", "yz"],
            "logit_bias": {"5": 3},
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "min_p": 0.05,
            "top_k": 5,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 3,
            "min_tokens": 1,
            "stop_token_ids": [7],
            "ignore_eos": True,
        },
    ),
    (PLAIN, {"prompt": [[65, 66], [67]], "max_tokens": 0, "echo": True, "logprobs": 1}),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.5, -0.0),
    *(
        1e308,
        -1e308,
        5e-324,
        "",
        "a",
        "\x00",
        "\ud800",
        "é€𝄞",
        "x" * 3000,
        "1",
        "null",
        "NaN",
        [],
        {},
    ),
    *([None], [[]], [0, "a"], ["a"] * 70, [65] * 3000, [-1], [1 << 40], {"a": None}, {"": ""}),
    *(
        {"type": "text"},
        {"type": "image_url", "image_url": {"url": "x"}},
        [{"type": "text"}],
        "<s>",
    ),
    *({"role": "user"}, {"role": "user", "content": ""}, [[[[[[]]]]]], {"5": 1e9}, {"-1": 0}),
)
METHODS = (
    "GET",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "post",
    "P T",
    "",
)
PATHS = (
    *(
        "/",
        "/v1",
        "/v1/",
        "/v1/models",
        "/v1/models/tiny",
        "/v1/models/",
        "/v1/models/a%2fb",
        "/health",
    ),
    *(
        "/metrics",
        "//v1//completions",
        "/v1/completions/",
        "/v1/../etc/passwd",
        "/%00",
        "/%zz",
        "*",
    ),
    *(
        "http://localhost/v1/completions",
        "/v1/completions?stream=1",
        "/" + "a" * 9000,
        "/\x7f",
        "é",
        "",
    ),
    *("/v1/engines/tiny/completions", "/v1/embeddings", "/favicon.ico", "/v1/completions#x"),
)
HEADERS = (
    *(
        "content-type: text/plain",
        "content-type:",
        "content-encoding: gzip",
        "expect: 100-continue",
    ),
    *(
        "connection: close",
        "connection: keep-alive, close",
        "connection: upgrade",
        "upgrade: websocket",
    ),
    *(
        "transfer-encoding: chunked",
        "transfer-encoding: gzip",
        "content-length: 5",
        "content-length: x",
    ),
    *("content-length: -1", "content-length: 99999999999999999999", "content-length: 3, 4"),
    *(
        "host: evil.example",
        "host:",
        "host: localhost:99999",
        "origin: http://evil.example",
        "x: \x00",
    ),
    *(
        "x" * 9000 + ": y",
        "x: " + "y" * 70_000,
        ": empty",
        " folded",
        "no colon",
        "authorization: é",
    ),
    *(
        "authorization: Basic eDp5",
        "cookie: " + "a=b; " * 500,
        "accept: text/html",
        "range: bytes=0-1",
    ),
)


@dataclass(frozen=True)
class Mutated:
    """good: it was not changed. waits: the server may wait for more of it."""

    data: bytes
    good: bool = False
    waits: bool = False


class Mutator:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def next(self) -> Mutated:
        rng = self._rng
        path, body = rng.choice(BODIES)
        kind = rng.randrange(100)
        if kind < 4:
            return Mutated(_request("POST", path, _bytes(body)), good=True)
        if kind < 50:
            return Mutated(_request("POST", path, _bytes(self._changed(body))))
        if kind < 70:
            return Mutated(_request("POST", path, self._broken(_bytes(body))))
        if kind < 80:
            return self._other_head(path, _bytes(body))
        if kind < 92:
            more = rng.sample(HEADERS, rng.randint(1, 3))
            return Mutated(_request("POST", path, _bytes(body), more), waits=True)
        whole = _request("POST", path, _bytes(body))
        if kind < 97:
            return Mutated(self._broken(whole), waits=True)
        return Mutated(rng.randbytes(rng.randrange(1, 3000)), waits=True)

    def _changed(self, body: Any) -> Any:
        """One or more values elsewhere in a body changed, left out, or added."""
        made = json.loads(json.dumps(body))
        for _ in range(self._rng.choice((1, 1, 2, 5))):
            places: list[tuple[Any, Any]] = []
            _collect(made, places)
            if not places:
                break
            owner, key = self._rng.choice(places)
            kind = self._rng.randrange(8)
            if kind == 0:
                del owner[key]
            elif kind == 1 and isinstance(owner, dict):
                owner[self._rng.choice(("unheard_of", "", "Model", "é", "x" * 500))] = 1
            elif kind == 2:
                owner[key] = [deepcopy(owner[key]) for _ in range(self._rng.choice((1, 2, 200)))]
            else:
                owner[key] = deepcopy(self._rng.choice(VALUES))
        return made

    def _broken(self, data: bytes) -> bytes:
        rng = self._rng
        ways: tuple[Callable[[], bytes], ...] = (
            lambda: data[: rng.randrange(len(data) + 1)],
            lambda: data[rng.randrange(len(data)) :],
            lambda: self._flipped(data),
            lambda: data + rng.randbytes(5),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.decode("utf-8", "replace").encode("utf-16"),
            lambda: b"[" * rng.choice((10, 1000, 50_000)) + data,
            lambda: data.replace(b":", b": NaN,", 1),
            lambda: data.replace(b'"', b"'", 3),
            lambda: data.replace(b"{", b'{"a": 1, "a": 2,', 1),
            lambda: data.replace(b": ", b": 1e99999, ", 1),
            lambda: b"",
        )
        return rng.choice(ways)()

    def _flipped(self, data: bytes) -> bytes:
        made = bytearray(data)
        for _ in range(self._rng.choice((1, 3, 20))):
            made[self._rng.randrange(len(made))] = self._rng.randrange(256)
        return bytes(made)

    def _other_head(self, path: str, body: bytes) -> Mutated:
        rng = self._rng
        method = rng.choice((*METHODS, "POST", "POST", "GET"))
        version = rng.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""))
        data = _request(method, rng.choice((path, *PATHS)), body, version=version)
        return Mutated(data, waits=True)


def _collect(node: Any, places: list[tuple[Any, Any]]) -> None:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        places.append((node, key))
        _collect(node[key], places)


def _bytes(body: Any) -> bytes:
    return json.dumps(body).encode()


def _request(
    method: str,
    path: str,
    body: bytes,
    more: list[str] | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    lines = [f"{method} {path} {version}", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", *(more or ()), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + body
