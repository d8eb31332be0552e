"""What clients of OpenAI's interface really send: it works, or it is refused by its name."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Server, serving, streamed
from served_models import WITH_TOOLS, served_model

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "strict": False, "description": None}}
NULLS = (
    *("model", "temperature", "top_p", "n", "stream", "stop", "seed", "user", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "stream_options", "logprobs", "unheard_of"),
)
CHAT_NULLS = (
    *("max_completion_tokens", "tools", "tool_choice", "response_format", "top_logprobs"),
    *("functions", "function_call", "reasoning_effort", "modalities", "audio", "prediction"),
)


def said(**more: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": "hi", **more}, *HELLO]}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# Fields besides a good request -> None where it works, else what the refusal names.
CHATS: list[tuple[dict[str, Any], str | None]] = [
    (dict.fromkeys((*NULLS, *CHAT_NULLS)), None),
    ({"max_tokens": None, "max_completion_tokens": 2}, None),
    ({"max_completion_tokens": 9}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2.0}, None),
    ({"max_tokens": "2"}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.con"),
    ({"response_format": {"type": "text", "json_schema": None}}, None),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"response_format": "text"}, "response_format"),
    ({"stop": []}, None),
    ({"stop": ["a", "a", "b", "c", "d"]}, None),
    ({"stop": ""}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"n": 0}, "n"),
    ({"n": 3, "temperature": 0}, None),
    ({"n": 100_000}, "n"),
    ({"logit_bias": {"65": 100}}, None),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"seed": -1}, None),
    ({"seed": 1 << 64}, "seed"),
    ({"logprobs": True, "top_logprobs": 20}, None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}, None),
    ({"tools": [TOOL], "tool_choice": "none"}, None),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choi",
    ),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "strict"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
    ({"tools": []}, None),
    ({"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}, None),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["text"]}, None),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "low"}, "chat_template_kwargs"),
    ({"enable_thinking": False}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, None),
    ({"guided_json": {}}, "guided_json"),
    ({"model": "gpt-4o"}, "gpt-4o"),
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": {"role": "user", "content": "a"}}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "name": "f", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "developer", "content": "a"}, *HELLO]}, None),
    (user(""), None),
    (user(None), "messages[0].content"),
    (user([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]), None),
    (user([{"type": "image_url", "image_url": {"url": "data:,"}}]), "messages[0].content[0].type"),
    (user(["a"]), "messages[0].content[0]"),
    (said(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None), None),
    (said(reasoning="so"), None),
    (said(reasoning="so", reasoning_content="else"), "messages[1].reasoning"),
    (said(id="abc"), "messages[1].id"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
]
PLAINS: list[tuple[dict[str, Any], str | None]] = [
    (dict.fromkeys((*NULLS, "suffix", "echo", "best_of")), None),
    ({"best_of": 2, "n": 2}, None),
    ({"best_of": 3}, "best_of"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"logprobs": False}, None),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": ""}, None),
    ({"suffix": "a"}, "suffix"),
    ({"echo": "true"}, "echo"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", [65]]}, None),
    ({"prompt": [65, "a"]}, "prompt"),
    ({"prompt": [99_999]}, "prompt: 99999"),
    ({"prompt": [-1]}, "prompt: -1"),
    ({"prompt": [True]}, "prompt"),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_model(tmp_path_factory.mktemp("clients"), WITH_TOOLS)


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    page = ("--cors", "http://page.example")
    with serving(artifact, "--name", "tiny", "--threads", 1, *page) as found:
        yield found


def problems(server: Server, path: str, good: dict[str, Any], table: Any) -> list[str]:
    found = []
    for more, named in table:
        status, made = server.send(path, {**good, **more})
        if named is None:
            if status != 200:
                found.append(f"{more}: {made}")
        else:
            words = f"{made['error']['param']} {made['error']['message']}" if status != 200 else ""
            if not 400 <= status < 500 or named not in words:
                found.append(f"{more}: {status} {words}")
    return found


def test_fields_of_chats(server: Server) -> None:
    assert problems(server, CHAT, {"messages": HELLO, "max_tokens": 2}, CHATS) == []


def test_fields_of_completions(server: Server) -> None:
    assert problems(server, PLAIN, {"prompt": "hi", "max_tokens": 2}, PLAINS) == []


@pytest.mark.parametrize("size", [1, 2, 5])
def test_stop_texts_wherever_tokens_cut_them(server: Server, size: int) -> None:
    """Every token is one byte here, so a longer text is always cut."""
    body = {"prompt": "hello", "max_tokens": 60, "temperature": 1.0, "seed": 4}
    whole = server.send(PLAIN, body)[1]["choices"][0]["text"]
    places = [i for i in range(5, len(whole) - size) if "\ufffd" not in whole[i : i + size]]
    for place in places[:: max(1, len(places) // 6)]:
        stop = whole[place : place + size]
        expected = whole.partition(stop)[0]
        for stops in (stop, ["never comes", stop], [stop, stop + "x"]):
            choice = server.send(PLAIN, {**body, "stop": stops})[1]["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
        events = streamed(server, PLAIN, {**body, "stop": stop})
        assert "".join(e["choices"][0]["text"] for e in events) == expected
    echoed = server.send(PLAIN, {**body, "stop": "hello", "echo": True})[1]["choices"][0]
    assert echoed["text"].startswith("hello"), "a prompt does not end its own text"


# -------------------------------------------------------------------------------------- HTTP


def exchange(server: Server, data: bytes, host: str = "127.0.0.1") -> bytes:
    """Everything that comes until the connection ends, or nothing more does."""
    with socket.create_connection((host, server.port), timeout=20) as raw:
        raw.sendall(data)
        raw.settimeout(0.15)
        found = b""
        while True:
            try:
                piece = raw.recv(65536)
            except TimeoutError:
                if found:
                    return found
                raw.settimeout(20)
                continue
            if not piece:
                return found
            found += piece


def http(line: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    lines = [f"{line} HTTP/1.1", f"host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


BODY = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
TYPE = "content-type: application/json"
LENGTH = f"content-length: {len(BODY)}"
CHUNKS = b"4\r\n" + BODY[:4] + b"\r\n%x\r\n" % len(BODY[4:]) + BODY[4:] + b"\r\n0\r\n\r\n"
POST = f"POST {PLAIN}"
ZIPPED = gzip.compress(BODY)
EXCHANGES: dict[str, tuple[bytes, bytes, bytes]] = {  # request, status, words of the answer
    "chunked": (http(POST, TYPE, "transfer-encoding: chunked", body=CHUNKS), b"200", b"usage"),
    "expect": (http(POST, TYPE, LENGTH, "expect: 100-continue", body=BODY), b"100", b"200 OK"),
    "query": (http(f"{POST}?api-version=1", TYPE, LENGTH, body=BODY), b"200", b"usage"),
    "charset": (http(POST, f"{TYPE}; charset=utf-8", LENGTH, body=BODY), b"200", b"usage"),
    "gzip": (
        http(POST, TYPE, f"content-length: {len(ZIPPED)}", "content-encoding: gzip", body=ZIPPED),
        b"415",
        b"content-encoding",
    ),
    "no type": (http(POST, LENGTH, body=BODY), b"415", b"application/json"),
    "form of a page": (http(POST, "content-type: text/plain", LENGTH, body=BODY), b"415", b"type"),
    "slash": (http(f"{POST}/", TYPE, LENGTH, body=BODY), b"404", b"use /v1/completions"),
    "no /v1": (http("POST /chat/completions", TYPE), b"404", b"use /v1/chat/completions"),
    "twice /v1": (http("POST /v1/v1/completions", TYPE), b"404", b"use /v1/completions"),
    "other paths": (http("POST /v1/responses", TYPE), b"404", b"see /v1/chat/completions"),
    "other method": (http(f"PUT {PLAIN}", TYPE), b"405", b"not by PUT"),
    "options": (http(f"OPTIONS {CHAT}"), b"405", b"allow: POST"),
    "head": (http("HEAD /v1/models"), b"200", b"content-length"),
    "head of a post": (http(f"HEAD {CHAT}"), b"405", b"allow: POST"),
    "model": (http("GET /v1/models/tiny"), b"200", b'"id":"tiny"'),
    "other model": (http("GET /v1/models/a/b"), b"404", b"model_not_found"),
    "other host": (http("GET /v1/models", host="evil.example:80"), b"403", b"evil.example"),
    "rebound": (http("GET /v1/models", host="127.0.0.1.nip.io"), b"403", b"nip.io"),
    "host with a dot": (http("GET /v1/models", host="LOCALHOST.:80"), b"200", b"tiny"),
    "host of IPv6": (http("GET /v1/models", host="[::1]:80"), b"200", b"tiny"),
    "two hosts": (http("GET /v1/models", "host: evil.example"), b"400", b"no HTTP"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"404", b"there is no"),
    "HTTP/1.0": (b"GET /v1/models HTTP/1.0\r\n\r\n", b"200", b"tiny"),
    "empty": (http(POST, TYPE, "content-length: 0"), b"400", b"empty"),
    "key twice": (
        http(POST, TYPE, "content-length: 27", body=b'{"prompt": 1, "prompt": ""}'),
        b"400",
        b"twice",
    ),
}


@pytest.mark.parametrize("name", sorted(EXCHANGES))
def test_http(server: Server, name: str) -> None:
    data, status, words = EXCHANGES[name]
    answer = exchange(server, data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert words in answer


def test_pages_of_other_origins(server: Server) -> None:
    asks = ("access-control-request-method: POST", "access-control-request-headers: x-stainless-os")
    known, other = ("origin: http://page.example", "origin: http://evil.example")
    allowed = b"access-control-allow-origin: http://page.example"
    assert allowed in exchange(server, http(f"OPTIONS {CHAT}", known, *asks))
    assert exchange(server, http(f"OPTIONS {CHAT}", known, *asks)).startswith(b"HTTP/1.1 200")
    assert b"allow-origin" not in exchange(server, http(f"OPTIONS {CHAT}", other, *asks))
    assert allowed in exchange(server, http(POST, known, TYPE, LENGTH, body=BODY))
    assert allowed in exchange(server, http("GET /nothing", known))
    assert b"allow-origin" not in exchange(server, http("GET /v1/models", other))


def test_keys_in_a_wrong_form(artifact: Path) -> None:
    with serving(artifact, "--threads", 1, DSCONV_API_KEY="secret") as found:
        for header in (
            *("authorization: secret", "authorization: Basic c2VjcmV0", "authorization: Bearer"),
            *("authorization: Bearer secret2", "authorization: Bearer \xe9", "api-key: secret"),
            *("x-api-key: secret", "cookie: secret"),
        ):
            answer = exchange(found, http("GET /v1/models", header))
            assert answer.startswith(b"HTTP/1.1 401"), header
            assert b"Bearer KEY" in answer
        for header in ("authorization: Bearer secret", "Authorization: bearer  secret "):
            assert exchange(found, http("GET /v1/models", header)).startswith(b"HTTP/1.1 200")
        assert found.send("/v1/models?key=secret")[0] == 401


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6(artifact: Path) -> None:
    with serving(artifact, "--threads", 1, "--host", "::1") as found:
        assert found.url.startswith("http://[::1]:")
        assert found.send("/v1/models")[0] == 200
        evil = exchange(found, http("GET /v1/models", host="evil.example"), "::1")
        assert evil.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("origin", ["http://page.example/", "page.example", "http://*.example"])
def test_origins_that_no_browser_sends(artifact: Path, origin: str) -> None:
    command = [sys.executable, "-m", "dsconv", "serve", str(artifact), "--port", "0"]
    done = subprocess.run([*command, "--cors", origin], capture_output=True, text=True, check=False)
    assert (done.returncode, "is no origin" in done.stderr) == (2, True)
