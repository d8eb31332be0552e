"""What the names in `tokenizer.ggml.pre` stand for: how a text is split before the merges.

The expressions are those in the tokenizer.json of the models that carry the name. A name that is
not here is refused: another split gives other tokens, and nothing would report it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{_OTHERS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}|{_OTHERS_AND_SPACES}"
_DEEPSEEK_V3 = (  # here the original has the line ends themselves, not their escapes
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
    "\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
# The original lists 95 ranges; they are the letters with case, except those of these blocks.
_CASED = (
    "[\\p{Lu}\\p{Ll}\\p{Lt}&&[^\u0560-\u0588\u10c7\u10cd\u10d0-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d"
    "\ua790-\uab6f\U00010570-\U000105bc\U00010d50-\U00010d85\U00016e40-\U0001df2a]]"
)
_PUNCTUATION = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _split(*patterns: str) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    )


_DIGITS = ({"type": "Digits", "individual_digits": True},)


@dataclass(frozen=True)
class PreTokenizer:
    """`splits` in order, then bytes; with `gpt2_words` a split by GPT-2's expression between."""

    splits: tuple[dict[str, Any], ...] = ()
    gpt2_words: bool = False
    nfc: bool = False
    ignore_merges: bool = False  # a word that is a token stays one even if no merges lead to it
    begins_text: bool = False  # a BOS is added unless the metadata denies it, as llama.cpp does

    def to_json(self) -> dict[str, Any]:
        to_bytes = {**byte_level(), "use_regex": self.gpt2_words}
        return {"type": "Sequence", "pretokenizers": [*self.splits, to_bytes]}


_LLAMA3_PRE = PreTokenizer(_split(_LLAMA3), ignore_merges=True, begins_text=True)
_QWEN2_PRE = PreTokenizer(_split(_QWEN2), nfc=True)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(gpt2_words=True),
    "smollm": PreTokenizer(_DIGITS, gpt2_words=True),
    "llama-bpe": _LLAMA3_PRE,
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "qwen2": _QWEN2_PRE,
    "deepseek-r1-qwen": _QWEN2_PRE,
    "deepseek-llm": PreTokenizer(
        _split("[\r\n]", rf"\s?{_CASED}+", rf"\s?{_PUNCTUATION}+", r"\s+$", _CJK) + _DIGITS
    ),
    "deepseek-coder": PreTokenizer(_split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK) + _DIGITS),
    "deepseek-v3": PreTokenizer(
        _split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3)
    ),
    # llama.cpp's rule for byte-level files whose converter knew no name
    "default": PreTokenizer(
        _split(
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        )
    ),
}


def byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
