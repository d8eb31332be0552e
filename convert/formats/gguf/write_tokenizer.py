"""tokenizer.json as the metadata of a GGUF file: the inverse of read_tokenizer.

llama.cpp knows ways to split text by name only. A tokenizer whose way has no name is refused: under
another one the model would get other tokens, and nothing would report it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.errors import InputError, UnsupportedError

from .pretokenizers import PRE_TOKENIZERS, byte_level
from .read_tokenizer import CONTROL, NORMAL, PREFIX, UNUSED, USER_DEFINED

TOKENIZER = "tokenizer.json"
# Marks that some tokenizers do not call special although they are: llama.cpp's own list of shapes.
SPECIAL_SHAPES = (("<|", "|>"), ("<\uff5c", "\uff5c>"))
# Settings of BPE that byte-level models leave alone, and the values that do nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
}


@dataclass(frozen=True)
class TextSettings:
    """What belongs to a tokenizer but is not in tokenizer.json; None where the model has none.

    `stop_ids`: every token that ends a text, the most usual first. `adds_bos`: before a prompt.
    `tokenizer`: tokenizer.json with the tokens that other files name; None takes the file as it is.
    """

    bos_id: int | None
    stop_ids: tuple[int, ...]
    pad_token: str | None
    adds_bos: bool
    chat_template: str | None
    tokenizer: bytes | None = None


def _unsupported(what: str, hint: str) -> UnsupportedError:
    return UnsupportedError(f"{TOKENIZER}: {what} is not supported in a GGUF file", hint)


def _canonical(text: bytes) -> dict[str, Any]:
    """Parsed, with every default written out."""
    from tokenizers import Tokenizer

    try:
        content = json.loads(Tokenizer.from_buffer(text).to_str())
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library promises no class, and a panic is no Exception
        raise InputError(
            f"{TOKENIZER}: cannot read: {error}", "download it again from the original model"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{TOKENIZER}: not an object", "download it again")
    return content


def _without_offsets(stage: Any) -> Any:
    """Whether offsets are trimmed changes no token."""
    if isinstance(stage, dict):
        return {key: value for key, value in stage.items() if key != "trim_offsets"}
    return stage


def _steps(stage: Mapping[str, Any] | None, plural: str) -> list[Any]:
    """A stage as the list of its steps: nothing, one, or a Sequence."""
    if stage is None:
        return []
    return list(stage[plural]) if stage["type"] == "Sequence" else [stage]


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Find the name in llama.cpp for how a (canonical) tokenizer.json treats text before merging.

    Raises:
        UnsupportedError: it has none.
    """
    normalizers = _steps(tokenizer["normalizer"], "normalizers")
    splits = [
        _without_offsets(step) for step in _steps(tokenizer["pre_tokenizer"], "pretokenizers")
    ]
    for name, known in PRE_TOKENIZERS.items():
        expected = [_without_offsets(step) for step in known.to_json()["pretokenizers"]]
        if (
            splits == expected
            and normalizers == ([{"type": "NFC"}] if known.nfc else [])
            and tokenizer["model"]["ignore_merges"] == known.ignore_merges
        ):
            return name
    kinds = ", ".join(step["type"] for step in [*normalizers, *splits]) or "none at all"
    raise _unsupported(
        f"its way to split text ({kinds})", f"known by name: {', '.join(PRE_TOKENIZERS)}"
    )


def _check_model(model: Mapping[str, Any]) -> None:
    for key, values in NEUTRAL.items():
        if model.get(key, values[0]) not in values:
            raise _unsupported(f"model.{key} = {model[key]!r}", "supported: byte-level BPE")


def _merges(model: Mapping[str, Any]) -> list[str]:
    pairs = [tuple(pair) for pair in model["merges"]]
    if not pairs:
        raise _unsupported("a model without merges", "llama.cpp needs at least one")
    if any(" " in part for pair in pairs for part in pair):
        raise _unsupported("a merge with a space", f"supported: {byte_level()['type']} tokens")
    return [" ".join(pair) for pair in pairs]


def _looks_special(token: str) -> bool:
    return any(token.startswith(start) and token.endswith(end) for start, end in SPECIAL_SHAPES)


def _tokens(tokenizer: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """-> (tokens, types), one per row of the embedding; rows without a token are unused."""
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for added in tokenizer["added_tokens"]:
        special = added["special"] or _looks_special(added["content"])
        names[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if special else USER_DEFINED
    if names and max(names) >= rows:
        raise InputError(
            f"{TOKENIZER}: token {max(names)} has no row in the embedding of {rows}",
            "the files belong to different models; download them again",
        )
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    return tokens, [kinds.get(number, UNUSED) for number in range(rows)]


def tokenizer_keys(
    side_files: Mapping[str, bytes], rows: int, settings: TextSettings
) -> dict[str, Any]:
    """The keys `tokenizer.*` for an embedding of `rows`.

    Raises:
        InputError: tokenizer.json is missing, broken or of another model.
        UnsupportedError: llama.cpp knows no such tokenizer.
    """
    if TOKENIZER not in side_files:
        raise InputError(f"{TOKENIZER}: missing", "copy it from the original model")
    tokenizer = _canonical(settings.tokenizer or side_files[TOKENIZER])
    _check_model(tokenizer["model"])
    tokens, types = _tokens(tokenizer, rows)
    keys: dict[str, Any] = {
        f"{PREFIX}.model": "gpt2",
        f"{PREFIX}.pre": pre_tokenizer_name(tokenizer),
        f"{PREFIX}.tokens": tokens,
        f"{PREFIX}.token_type": types,
        f"{PREFIX}.merges": _merges(tokenizer["model"]),
        f"{PREFIX}.add_bos_token": settings.adds_bos,
    }
    if settings.bos_id is not None:
        keys[f"{PREFIX}.bos_token_id"] = settings.bos_id
    # llama.cpp ends a text at any of the three
    for name, number in zip(("eos", "eot", "eom"), settings.stop_ids, strict=False):
        keys[f"{PREFIX}.{name}_token_id"] = number
    if settings.pad_token in tokens:
        keys[f"{PREFIX}.padding_token_id"] = tokens.index(settings.pad_token)
    if settings.chat_template:
        keys["tokenizer.chat_template"] = settings.chat_template
    return keys
