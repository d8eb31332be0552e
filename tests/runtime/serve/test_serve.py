"""The server as clients see it: OpenAI's own, plain HTTP, raw sockets, a browser."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from browser import browser, find_browser
from native_models import exported
from outputs import quantized
from served import Server, serving
from served_models import served_model

from dsconv.runtime.generate.answer import UserPrompt, Wanted, answer
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.sessions.load import load_rounding

MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(native: Path) -> Iterator[Server]:
    with serving(native, "--name", "tiny", "--threads", 1, "--max-body", "100KiB") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert server.send("/health") == (200, {"status": "ok"})
    status, problem = server.send("/v1/models/other")
    assert (status, problem["error"]["code"]) == (404, "model_not_found")


def test_a_chat_is_what_run_writes(client: openai.OpenAI, native: Path) -> None:
    loaded = load_rounding(str(native), 1, "fp16", "own")
    for sampling in (Sampling(), Sampling(0.8, 0.9, seed=5)):
        loaded.session.reset()
        alone = answer(loaded, UserPrompt("hello there"), Wanted(sampling, 24))
        options: dict[str, Any] = {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 24,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        whole = client.chat.completions.create(**options)
        assert (whole.choices[0].message.content or "").strip() == alone.text
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == alone.generation.prompt_tokens
        stream = client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
        pieces, usage = [], None
        for chunk in stream:
            usage = chunk.usage or usage
            pieces += [choice.delta.content or "" for choice in chunk.choices]
        assert "".join(pieces).strip() == alone.text
        assert usage is not None
        assert usage.completion_tokens == whole.usage.completion_tokens


def test_completions_tell_probabilities_of_the_prompt(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="tiny", prompt=["ab", "cd"], max_tokens=0, echo=True, logprobs=2
    )
    assert [choice.text for choice in made.choices] == ["ab", "cd"]
    for choice in made.choices:
        assert choice.logprobs is not None
        values = choice.logprobs.token_logprobs
        assert values is not None
        assert values[0] is None
        assert all(value is not None and value < 0 for value in values[1:])
    drawn = client.completions.create(model="tiny", prompt="ab", max_tokens=6, n=3, seed=2)
    assert len(drawn.choices) == 3
    again = client.completions.create(model="tiny", prompt="ab", max_tokens=6, n=3, seed=2)
    assert [c.text for c in drawn.choices] == [c.text for c in again.choices]
    greedy = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = greedy.choices[0].logprobs
    assert content is not None
    for token in content.content or []:
        top = [math.exp(other.logprob) for other in token.top_logprobs]
        assert top == sorted(top, reverse=True)
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


@pytest.mark.parametrize("echo", [False, True])
def test_the_token_that_ends_a_text_has_its_probability(client: openai.OpenAI, echo: bool) -> None:
    """Harnesses leave out the last entry, which they take for the one token that they asked for."""
    made = client.completions.create(
        model="tiny", prompt="ab", max_tokens=1, logprobs=1, echo=echo, logit_bias={"257": 100}
    ).choices[0]
    assert (made.finish_reason, made.text) == ("stop", "ab" if echo else "")
    assert made.logprobs is not None
    assert made.logprobs.tokens == [*(["a", "b"] if echo else []), "</s>"]
    assert made.logprobs.text_offset == [*([0, 1] if echo else []), len(made.text)]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": MESSAGES, "temperature": "hot"}, "temperature"),
    ({"messages": MESSAGES, "temperature": -1}, "temperature"),
    (
        {"messages": MESSAGES, "logit_bias": {"5": 3}, "response_format": {"type": "json_object"}},
        "",
    ),
    ({"messages": MESSAGES, "unheard_of": 1}, "unheard_of"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({}, "messages"),
    ({"messages": MESSAGES, "model": "other"}, "model"),
    ({"messages": MESSAGES, "max_tokens": 0.5}, "max_tokens"),
    ({"messages": MESSAGES, "stop": [""]}, "stop"),
    ({"messages": [{"role": "user", "content": "x" * 60_000}]}, ""),
]


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_wrong_requests_are_told_what_is_wrong(server: Server, index: int) -> None:
    body, named = WRONG[index]
    status, problem = server.send("/v1/chat/completions", {"model": "tiny", "max_tokens": 2} | body)
    assert 400 <= status < 500
    error = problem["error"]
    assert error["type"]
    assert named in f"{error['param']} {error['message']}"


def test_wrong_http(server: Server) -> None:
    assert server.send("/v1/chat/completions", b"{")[0] == 400
    assert server.send("/v1/chat/completions", b"\xff\xfe")[0] == 400
    assert server.send("/v1/chat/completions")[0] == 405
    assert server.send("/v1/nothing")[0] == 404
    assert server.send("/v1/../../etc/passwd")[0] == 404
    assert server.send("/v1/completions", b"x" * 200_000)[0] == 413
    assert server.send("/health", host="evil.example")[0] == 403
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert raw.recv(100).startswith((b"HTTP/1.1 400", b""))
    assert server.send("/health")[0] == 200


def test_a_client_that_goes_away_frees_its_place(server: Server) -> None:
    body = json.dumps(
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 1500, "stream": True}
    ).encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            head = [
                "POST /v1/chat/completions HTTP/1.1",
                "host: localhost",
                f"content-length: {len(body)}",
                "content-type: application/json",
            ]
            raw.sendall("\r\n".join([*head, "", ""]).encode() + body)
            assert b"200 OK" in raw.recv(4000)
    end = time.monotonic() + 20
    while _running(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert _running(server) == 0


def _running(server: Server) -> int:
    text = server.send("/metrics")[1]
    lines = [line for line in text.splitlines() if line.startswith("dsconv_texts_running")]
    return int(float(lines[0].split()[-1]))


def test_the_key(native: Path) -> None:
    with serving(native, "--threads", 1, DSCONV_API_KEY="secret") as found:
        assert found.send("/health")[0] == 200
        assert found.send("/v1/models")[0] == 401
        assert found.send("/v1/models", authorization="Bearer wrong")[0] == 401
        assert found.send("/v1/models", authorization="Bearer secret")[0] == 200


def test_a_draft_guesses_and_the_texts_stay(
    client: openai.OpenAI, native: Path, tmp_path: Path
) -> None:
    small = tmp_path / "q.dsq"
    exported(quantized(native.parent / "m", tmp_path / "q", bits=4), small)
    with serving(native, "--name", "tiny", "--threads", 1, "--draft", small) as found:
        drafted = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 3, "n": 3}):
            made, alone = (
                each.completions.create(model="tiny", prompt="hello", max_tokens=60, **options)  # type: ignore[call-overload]
                for each in (drafted, client)
            )
            assert [c.text for c in made.choices] == [c.text for c in alone.choices]
        figures = str(found.send("/metrics")[1])
        assert int(figures.split("\ndsconv_guesses_proposed ")[1].split()[0]) > 0


def test_a_signal_lets_texts_end(native: Path) -> None:
    with serving(native, "--threads", 1) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        ends: list[str] = []

        def ask() -> None:
            made = client.completions.create(
                model="m", prompt="a", max_tokens=1500, temperature=1.5, seed=1, n=64
            )
            ends.extend(str(choice.finish_reason) for choice in made.choices)

        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive() and not _running(found):
            time.sleep(0.01)
        assert found.end() == 0
        thread.join(30)
        assert len(ends) == 64
        assert set(ends) <= {"stop", "length"}


def test_it_starts_again_after_a_kill(native: Path) -> None:
    with serving(native, "--threads", 1) as found:
        port = found.port
        assert found.end(signal.SIGKILL) == -signal.SIGKILL
    with serving(native, "--threads", 1, "--port", port) as again:
        assert again.send("/health")[0] == 200


def test_many_clients(server: Server, client: openai.OpenAI) -> None:
    """Mixed lengths, some cut off midway, some malformed: none is lost, and each is its own."""
    alone: dict[int, str] = {}
    got: dict[int, str] = {}

    def text(number: int) -> str:
        made = client.completions.create(
            model="tiny",
            prompt=f"text {number} " * (1 + number % 7),
            max_tokens=5 + number % 30,
            temperature=0.8,
            seed=number,
        )
        return made.choices[0].text

    def work(start: int) -> None:
        for number in range(start, start + 6):
            if number % 3 == 0:
                stream = client.completions.create(
                    model="tiny", prompt="cut off", max_tokens=400, stream=True
                )
                next(iter(stream))
                stream.close()
            elif number % 7 == 0:
                assert server.send("/v1/completions", b'{"prompt": 3.5}')[0] == 400
            else:
                got[number] = text(number)

    threads = [threading.Thread(target=work, args=(6 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    wanted = [n for n in range(48) if n % 3 and n % 7]
    assert sorted(got) == wanted
    for number in wanted[::4]:
        alone[number] = text(number)
        assert got[number] == alone[number]


@pytest.mark.slow
def test_memory_stays_after_many_requests(server: Server, client: openai.OpenAI) -> None:
    def some(count: int) -> None:
        for number in range(count):
            client.completions.create(
                model="tiny", prompt=f"text {number % 50} " * (1 + number % 9), max_tokens=8
            )

    some(500)
    before = server.resident_bytes()
    some(2000)
    assert server.resident_bytes() < 1.05 * before + (4 << 20)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here")
def test_the_page(server: Server, tmp_path: Path) -> None:
    with browser(str(find_browser()), tmp_path / "profile", "127.0.0.1") as tab:
        tab.go(f"{server.url}/")
        tab.wait_for("document.title === 'tiny'")
        tab.evaluate("document.getElementById('tokens').value = 12")
        tab.evaluate("document.getElementById('words').value = 'hello there'")
        tab.evaluate("document.getElementById('ask').requestSubmit()")
        tab.wait_for("document.getElementById('stop').hidden")
        tab.wait_for("document.getElementById('rate').textContent.includes('tokens/s')")
        said = tab.evaluate("document.querySelector('article.assistant').innerText")
        assert said.strip()
        assert tab.evaluate("document.querySelectorAll('article.problem').length") == 0
        assert tab.messages == []
