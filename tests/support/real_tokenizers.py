"""The tokenizers of real models, and texts that are hard to split."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from places import SHARED_DATA

from dsconv.runtime.text.tokenizer import TextTokenizer

NAMES = ("deepseek-r1-distill-qwen", "deepseek-r1-distill-llama", "deepseek-v3")
AWKWARD = [
    "",
    "Hello, world!",
    "1234567890 3.14159 2025-03-14",
    "  leading and   inner spaces  ",
    "line1\nline2\r\n\n\nline4\t tab",
    "def f(x):\n    return x**2 + 10\n",
    "I'm we'll THEY'RE don't",
    "今天是2025年3月14日\uff0cπ≈3.14159。",
    "😀👩\u200d👩\u200d👧 é cafe\u0301 ﬁ ①",
    "العربية हिन्दी ไทย 한국어",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|><repo_name>x<file_sep>",
    "\u200bzero\xa0width $\\frac{1}{2}x^{2}$",
]


def folder(name: str) -> Path:
    path = SHARED_DATA / ("models" if name.startswith("tiny") else "tokenizers") / name
    if not path.is_dir():
        pytest.skip(f"{path} is missing: the real tokenizer files are not part of the project")
    return path


@lru_cache
def side_files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder(name).glob("*.json")}


@lru_cache
def real(name: str) -> TextTokenizer:
    return TextTokenizer(side_files(name))
