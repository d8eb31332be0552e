"""What tokenizer.json must not ask of the tokenizers library, which would do it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile.text_files import tokenizer_texts
from places import SHARED_DATA
from small_models import write_checkpoint
from tokenizers import Tokenizer

from dsconv.convert.files import limits
from dsconv.convert.formats.gguf.pretokenizers import PRE_TOKENIZERS
from dsconv.errors import InputError
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.text.tokenizer_file import open_tokenizer

DATA = SHARED_DATA
WORDS = {"<unk>": 0, "a": 1, "b": 2}


def content(**changes: Any) -> dict[str, Any]:
    """The smallest tokenizer."""
    stages: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    model = {"type": "WordLevel", "unk_token": "<unk>", "vocab": WORDS}
    return {"version": "1.0", "added_tokens": [], **stages, "model": model, **changes}


def opened(**changes: Any) -> Tokenizer:
    return open_tokenizer(json.dumps(content(**changes)).encode())


def replace(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": text}


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def sequence(*steps: dict[str, Any], of: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", of: list(steps)}


def added(*texts: str) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": 9 + i, "content": t, **flags, "special": True} for i, t in enumerate(texts)]


@pytest.mark.parametrize("number", range(5))
def test_every_kind_of_model_opens(tmp_path: Path, number: int) -> None:
    text = tokenizer_texts(write_checkpoint(tmp_path / "m"))[number]
    open_tokenizer(text.encode()).encode("a b")


@pytest.mark.parametrize("path", sorted(DATA.glob("*/*/tokenizer.json")), ids=str)
def test_real_ones_open(path: Path) -> None:
    assert open_tokenizer(path.read_bytes()).get_vocab_size() > 100


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_way_to_split_that_is_known_opens(name: str) -> None:
    opened(pre_tokenizer=PRE_TOKENIZERS[name].to_json())


DOUBLE = replace({"String": "a"}, "aa")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "doubled again and again": (
        {"normalizer": sequence(*[DOUBLE] * 7)},
        "normalizer: replacements lengthen a text 128 times, limit 64",
    ),
    "nested doubling": (
        {"normalizer": sequence(sequence(*[DOUBLE] * 4), sequence(*[DOUBLE] * 4))},
        "256 times, limit 64",
    ),
    "between all characters": (
        {"normalizer": replace({"Regex": ""}, "x" * 100)},
        "101 times, limit 64",
    ),
    "empty pattern": ({"normalizer": replace({"String": ""}, "x" * 100)}, "101 times, limit 64"),
    "when decoding": (
        {"decoder": sequence(*[DOUBLE] * 7, of="decoders")},
        "decoder: replacements lengthen a text 128 times",
    ),
    "long replacement": (
        {"normalizer": replace({"String": "a" * 300}, "b" * 257)},
        "a replacement of 257 characters, limit 256",
    ),
    "long prefix": (
        {"normalizer": {"type": "Prepend", "prepend": "x" * 257}},
        "257 characters, limit 256",
    ),
    "steps": (
        {"normalizer": sequence(*[{"type": "NFC"}] * 64)},
        "normalizer: 65 steps, limit 64",
    ),
    "exponential pattern": ({"pre_tokenizer": split("(a+)+$")}, "a group that repeats"),
    "pattern in a normalizer": (
        {"normalizer": replace({"Regex": "(a|a)*b"}, "")},
        "a group that repeats",
    ),
    "pattern that takes memory": (
        {"pre_tokenizer": split("a{100000}")},
        "100000 repetitions, limit 1000",
    ),
    "long token": (
        {"model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {**WORDS, "x" * 4097: 3}}},
        "a token of 4097 characters, limit 4096",
    ),
    "long piece": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["x" * 4097, -1.0]]}},
        "a token of 4097 characters",
    ),
    "long added token": ({"added_tokens": added("x" * 4097)}, "a token of 4097 characters"),
    "no object": ({"model": []}, "model is no object"),
    "settings as a bare list": (
        {"normalizer": {"type": "Sequence", "normalizers": [["x" * 300]]}},
        "no object with a type",
    ),
    "a list with its type": ({"normalizer": ["Prepend", "x" * 300]}, "no object with a type"),
    "no type": (
        {
            "pre_tokenizer": {
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "no object with a type",
    ),
    "an added token as a list": (
        {"added_tokens": [[9, "x" * 4097, False, False, False, False, True]]},
        "an added token that is no object",
    ),
    "deep": ({"normalizer": [[[[[[]]]]]] * 2, "x": json.loads("[" * 70 + "]" * 70)}, "levels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(InputError, match=r"tokenizer\.json: ") as caught:
        opened(**changes)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "limit", "changes", "count"),
    [
        ("added tokens", "ADDED_TOKENS", {"added_tokens": added("x", "y", "z")}, 3),
        ("tokens", "VOCABULARY", {}, 3),
        ("steps", "TOKENIZER_STAGES", {"normalizer": sequence({"type": "NFC"})}, 2),
        ("characters", "TOKEN_CHARACTERS", {}, 9),
        (
            "characters",
            "UNIGRAM_CHARACTERS",
            {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["ab", -1.0]]}},
            14,
        ),
        ("times", "REPLACEMENT_GROWTH", {"normalizer": sequence(DOUBLE, DOUBLE)}, 4),
        ("characters", "REPLACEMENT_CHARACTERS", {"normalizer": DOUBLE}, 2),
    ],
)
def test_at_the_limit_and_above(
    name: str, limit: str, changes: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, count)
    opened(**changes)
    monkeypatch.setattr(limits, limit, count - 1)
    with pytest.raises(InputError, match=f"{name}, limit {count - 1}"):
        opened(**changes)


def test_the_size_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(content()).encode()
    monkeypatch.setattr(limits, "TOKENIZER_BYTES", len(text))
    open_tokenizer(text)
    with pytest.raises(InputError, match=f"{len(text) + 1} bytes, limit {len(text)}"):
        open_tokenizer(text + b" ")


def test_a_panic_is_one_error_and_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    """The library answers this file with a panic of Rust, not with an exception."""
    model = {"type": "Unigram", "unk_id": 7, "vocab": []}
    files = {"tokenizer.json": json.dumps(content(model=model)).encode()}
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot"):
        TextTokenizer(files).encode("a")
    assert "panicked" not in capfd.readouterr().out


def test_a_file_that_kills_the_library_is_refused() -> None:
    """Shows that the limit on a token's length is needed: without it the process dies."""
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["x" * 2**20, -1.0]]}
    text = json.dumps(content(model=model))
    script = "import sys; from tokenizers import Tokenizer; Tokenizer.from_str(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", script], input=text.encode(), timeout=60)
    if done.returncode == 0:
        pytest.skip("this version of tokenizers survives it")
    with pytest.raises(InputError, match="limit 4096"):
        open_tokenizer(text.encode())
