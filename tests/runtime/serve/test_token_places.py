"""Where tokens begin in a text, against the bytes that they stand for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from real_tokenizers import AWKWARD, NAMES, real
from served import Server, serving, streamed
from served_models import served_model
from small_models import tokenizer_json

from dsconv.runtime.serve.texts.token_places import places_of
from dsconv.runtime.text.tokenizer import TextTokenizer

TEXTS = [*AWKWARD[1:], "€€€𝄞a", "\n\n 😀 b", "a <s> b", "  é"]
TINY = "one token per byte"


@cache
def tokenizer_of(name: str) -> TextTokenizer:
    if name != TINY:
        return real(name)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    files = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": json.dumps(settings)}
    return TextTokenizer({name: text.encode() for name, text in files.items()})


def bytes_of(tokenizer: TextTokenizer, token: int) -> bytes:
    """By GPT-2's table of characters for bytes; special tokens are written as they are."""
    piece = tokenizer.piece(token) or ""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    table = {chr(byte): byte for byte in printed}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    if all(mark in table for mark in piece):
        return bytes(table[mark] for mark in piece)
    return piece.encode()


def characters(data: bytes) -> tuple[str, list[int]]:
    """-> (the text, the character that each byte is a part of)."""
    text, owners = "", []
    while len(owners) < len(data):
        rest = data[len(owners) :]
        try:
            size = next(n for n in (1, 2, 3, 4) if _is_text(rest[:n]))
            text += rest[:size].decode()
        except StopIteration:  # what no character begins with, as U+FFFD
            size = _wrong(rest[:4])
            text += "\ufffd"
        owners += [len(text) - 1] * size
    return text, owners


def _is_text(data: bytes) -> bool:
    return data.decode("utf-8", "ignore").encode() == data


def _wrong(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end - error.start
    raise AssertionError(data)


def expected(tokens: Sequence[bytes]) -> tuple[str, list[int]]:
    text, owners = characters(b"".join(tokens))
    found, place = [], 0
    for data in tokens:
        found.append(owners[place] if place < len(owners) else len(text))
        place += len(data)
    return text, found


@pytest.mark.parametrize("name", [TINY, *NAMES])
def test_places_of_tokens(name: str) -> None:
    tokenizer, rng = tokenizer_of(name), random.Random(1)
    size = 256 if name == TINY else len(tokenizer.tokens())
    drawn = [[rng.randrange(size) for _ in range(12)] for _ in range(200)]
    cut = tokenizer.encode("€𝄞é한")
    drawn += [rng.choices(cut, k=9) for _ in range(200)]
    compared = 0
    for ids in [*map(tokenizer.encode, TEXTS), *drawn]:
        text, places = expected([bytes_of(tokenizer, token) for token in ids])
        if text == tokenizer.decode(ids, skip_special=False):  # not where its decoder trims
            assert places_of(tokenizer, ids) == places
            compared += 1
    assert compared > 400


@pytest.mark.parametrize("name", [TINY, *NAMES])
def test_places_in_a_prompt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for text in TEXTS:
        ids = tokenizer.encode_prompt(text)
        first = ids[0] == tokenizer.bos_id
        written, places = expected([bytes_of(tokenizer, token) for token in ids[first:]])
        if written == text:  # a normalizer may change it
            assert tokenizer.prompt_places(text) == [0] * first + places


# ---------------------------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    artifact = served_model(tmp_path_factory.mktemp("places"))
    with serving(artifact, "--name", "tiny", "--threads", 1) as found:
        yield found


def named_bytes(name: str, special: bool) -> bytes:
    """Of a token of the tiny vocabulary, by its name in an answer."""
    if name.startswith("bytes:"):
        return bytes(int(part, 16) for part in name[6:].split("\\x")[1:])
    return name.encode() if len(name) == 1 or (special and name in ("<s>", "</s>")) else b""


PROMPTS: list[Any] = ["aé€𝄞 b", "\n\n", [256, 100, 101, 257, 102, 64], [65, 66]]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["characters", "lines", "special tokens", "tokens"])
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_count_characters_of_the_text(server: Server, prompt: Any, echo: bool) -> None:
    body = {"prompt": prompt, "max_tokens": 60, "temperature": 2.0, "seed": 3, "logprobs": 1}
    body |= {"echo": echo, "n": 2}
    status, made = server.send("/v1/completions", body)
    assert status == 200
    pieces = list(streamed(server, "/v1/completions", body))
    for choice in made["choices"]:
        text, logs = choice["text"], choice["logprobs"]
        shown = len(prompt) if echo and isinstance(prompt, list) else 0
        tokens = [named_bytes(name, i < shown) for i, name in enumerate(logs["tokens"])]
        assert (text, logs["text_offset"]) == expected(tokens)
        parts = [c for p in pieces for c in p["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == text
        for key in ("tokens", "text_offset", "token_logprobs"):
            assert [value for part in parts for value in part["logprobs"][key]] == logs[key]
