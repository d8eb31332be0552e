"""Rebuild tokenizer.json and its companions from a GGUF file's metadata.

GGUF keeps the tokens with their types, and merges (byte-level BPE) or scores (SentencePiece BPE).
tokenizer.json never adds a BOS here; `add_bos_token` of tokenizer_config.json says what is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError

from .pretokenizers import PRE_TOKENIZERS, PreTokenizer, byte_level
from .sampling import sampling_of

PREFIX = "tokenizer.ggml"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
SPACE = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Vocabulary:
    """`tokens[id]` and `types[id]`; unused ids only pad the embedding and stay out of `ids`."""

    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]

    def of_type(self, *types: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def added_tokens(self) -> list[dict[str, Any]]:
        """Tokens that are found in the text before it is split."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": number, "content": token, **flags, "special": kind != USER_DEFINED}
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]


def _array(metadata: ConfigReader, name: str, kind: type) -> list[Any]:
    key = f"{PREFIX}.{name}"
    if not metadata.has(key):
        raise metadata.fail(key, "missing")
    value = metadata.data[key]
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise metadata.fail(key, f"not an array of {kind.__name__}")
    return value


def _vocabulary(metadata: ConfigReader, rows: int, spaces: bool) -> Vocabulary:
    tokens, types = _array(metadata, "tokens", str), _array(metadata, "token_type", int)
    if len(types) != len(tokens):
        raise metadata.fail(f"{PREFIX}.token_type", f"{len(types)} types, {len(tokens)} tokens")
    if len(tokens) > rows:
        raise metadata.fail(f"{PREFIX}.tokens", f"{len(tokens)} tokens, the embedding has {rows}")
    if spaces:  # such tokens are looked for in the text as it comes
        tokens = [
            token.replace(SPACE, " ") if kind == USER_DEFINED else token
            for token, kind in zip(tokens, types, strict=True)
        ]
    ids: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != UNUSED and ids.setdefault(token, number) != number:
            raise metadata.fail(f"{PREFIX}.tokens", f"{token!r} is token {ids[token]} and {number}")
    return Vocabulary(tokens, types, ids)


def _stored_merges(metadata: ConfigReader, ids: Mapping[str, int]) -> list[list[str]]:
    merges = []
    for merge in _array(metadata, "merges", str):
        left, _, right = merge[1:].partition(" ")  # the first character may itself be a space
        pair = [merge[:1] + left, right]
        if not all(part in ids for part in (*pair, "".join(pair))):
            raise metadata.fail(f"{PREFIX}.merges", f"{merge!r} is not made of tokens")
        merges.append(pair)
    return merges


def _merges_by_score(metadata: ConfigReader, vocabulary: Vocabulary) -> list[list[str]]:
    """SentencePiece joins the neighbours whose union scores best; so merges go by that score."""
    scores = _array(metadata, "scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise metadata.fail(
            f"{PREFIX}.scores", f"{len(scores)} for {len(vocabulary.tokens)} tokens"
        )
    pieces = {token: scores[vocabulary.ids[token]] for token in vocabulary.of_type(NORMAL)}
    if len(pieces) > 2 and len(set(pieces.values())) == 1:
        raise metadata.fail(f"{PREFIX}.scores", "all equal: they do not say which merge goes first")
    merges = [
        [token[:cut], token[cut:]]
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    # Of equal ones the longest left part: from the left, a run meets that one first.
    return sorted(merges, key=lambda pair: (-pieces["".join(pair)], -len(pair[0])))


def _tokenizer(
    vocabulary: Vocabulary, model: Mapping[str, Any], stages: Mapping[str, Any]
) -> dict[str, Any]:
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary.ids),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(),
        **stages,
        "model": {**bpe, **model},
    }


def _byte_level_tokenizer(
    metadata: ConfigReader, vocabulary: Vocabulary, pre: PreTokenizer
) -> dict[str, Any]:
    model = {
        "ignore_merges": pre.ignore_merges,
        "merges": _stored_merges(metadata, vocabulary.ids),
    }
    stages = {
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": pre.to_json(),
        "post_processor": {**byte_level(), "trim_offsets": False},
        "decoder": byte_level(),
    }
    return _tokenizer(vocabulary, model, stages)


def _sentencepiece_tokenizer(metadata: ConfigReader, vocabulary: Vocabulary) -> dict[str, Any]:
    unknown = vocabulary.of_type(UNKNOWN)
    prefix = metadata.boolean(f"{PREFIX}.add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    from_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    bytes_to_text = [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {
        "unk_token": unknown[0] if unknown else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "merges": _merges_by_score(metadata, vocabulary),
    }
    stages = {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, from_space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*bytes_to_text, *strip]},
    }
    return _tokenizer(vocabulary, model, stages)


def _token(metadata: ConfigReader, vocabulary: Vocabulary, key: str) -> str | None:
    if not metadata.has(f"{PREFIX}.{key}"):
        return None
    number = metadata.integer(f"{PREFIX}.{key}", low=0)
    if number >= len(vocabulary.tokens):
        raise metadata.fail(f"{PREFIX}.{key}", f"{number} of {len(vocabulary.tokens)} tokens")
    return vocabulary.tokens[number]


def _tokenizer_config(
    metadata: ConfigReader, vocabulary: Vocabulary, begins_text: bool
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _token(metadata, vocabulary, "bos_token_id"),
        "eos_token": _token(metadata, vocabulary, "eos_token_id"),
        "pad_token": _token(metadata, vocabulary, "padding_token_id"),
        "unk_token": _token(metadata, vocabulary, "unknown_token_id"),
        "add_bos_token": metadata.boolean(f"{PREFIX}.add_bos_token", begins_text),
        "add_eos_token": metadata.boolean(f"{PREFIX}.add_eos_token", False),
        "clean_up_tokenization_spaces": False,
    }
    if metadata.has("tokenizer.chat_template"):
        config["chat_template"] = metadata.string("tokenizer.chat_template")
    return config


def _generation_config(metadata: ConfigReader) -> dict[str, Any]:
    """Every token that ends a text or a turn is an end, as in llama.cpp."""

    def ids(*keys: str) -> list[int]:
        names = [f"{PREFIX}.{key}" for key in keys]
        present = [metadata.integer(name, low=0) for name in names if metadata.has(name)]
        return list(dict.fromkeys(present))

    found = {
        "bos_token_id": ids("bos_token_id"),
        "eos_token_id": ids("eos_token_id", "eot_token_id", "eom_token_id"),
        "pad_token_id": ids("padding_token_id"),
    }
    tokens = {key: value if len(value) > 1 else value[0] for key, value in found.items() if value}
    return {**tokens, **sampling_of(metadata)}


def tokenizer_files(metadata: ConfigReader, rows: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; `rows` of the embedding.

    Raises:
        InputError: a key is missing, or its values contradict each other.
        UnsupportedError: another tokenizer model, or an unknown pre-tokenizer.
    """
    model = metadata.string(f"{PREFIX}.model")
    if model == "gpt2":
        name = metadata.string(f"{PREFIX}.pre")
        if name not in PRE_TOKENIZERS:
            raise UnsupportedError(
                f"{metadata.where}: {PREFIX}.pre = {name!r} is not supported",
                f"supported: {', '.join(PRE_TOKENIZERS)}",
            )
        vocabulary, pre = _vocabulary(metadata, rows, spaces=False), PRE_TOKENIZERS[name]
        tokenizer = _byte_level_tokenizer(metadata, vocabulary, pre)
        begins_text = pre.begins_text
    elif model == "llama":
        vocabulary = _vocabulary(metadata, rows, spaces=True)
        tokenizer, begins_text = _sentencepiece_tokenizer(metadata, vocabulary), True
    else:
        raise UnsupportedError(
            f"{metadata.where}: {PREFIX}.model = {model!r} is not supported",
            "supported: gpt2 (byte-level BPE), llama (SentencePiece BPE)",
        )
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(metadata, vocabulary, begins_text),
        "generation_config.json": _generation_config(metadata),
    }
    return {
        name: json.dumps(content, ensure_ascii=False, indent=2).encode()
        for name, content in files.items()
    }
