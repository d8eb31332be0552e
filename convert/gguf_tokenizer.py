"""Rebuild tokenizer.json and its companions from a GGUF file's metadata.

GGUF keeps tokens, merges or scores, and the *name* of the pre-tokenizer; what the name stands for is in
the table below, taken from the tokenizer.json of the models that carry it. A name that is not there
is refused: another split of the text gives other tokens, and nothing would report it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, UnsupportedError
from .json_file import ConfigReader

PREFIX = "tokenizer.ggml"
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # values of tokenizer.ggml.token_type
NORMAL = 1
SPACE = "\u2581"  # SentencePiece writes a space as this lower one eighth block

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
).replace('\\"', '"')
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# The published class lists 95 ranges: letters with case, but not those of these blocks.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u0560-\u0588\u10c7\u10cd\u10d0-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d"
    r"\ua790-\uab6f\U00010570-\U000105bc\U00010d50-\U00010d85\U00016e40-\U0001df2a]]"
).encode("ascii").decode("unicode_escape") if False else ""
_PUNCTUATION = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
