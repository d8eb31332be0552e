"""What a model is in the figures that people ask for: sizes, text, sampling, its source."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST
from dsconv.convert.checkpoint.checkpoint import CONFIG, generation_config
from dsconv.convert.checkpoint.manifest import name_and_commit
from dsconv.convert.families.base import DecoderConfig
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.errors import DsconvError, InputError

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
NOT_SAMPLING = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; None where nothing tells them."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    hidden_size: int | None = None
    feed_forward_size: int | None = None
    context_length: int | None = None
    rope_scaling: Mapping[str, Any] | None = None
    vocabulary: int | None = None
    tied_embeddings: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class TextFacts:
    """The tokenizer and what belongs to it. `eos_token_ids`: every token that ends an answer."""

    chat_template: bool
    special_tokens: Mapping[str, str]
    eos_token_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "eos_token_ids": list(self.eos_token_ids)}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from. `made_from`: the model that dsconv or another tool made it of."""

    name: str
    commit: str | None = None
    made_from: str | None = None
    made_from_commit: str | None = None
    quantized_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def architecture(config: DecoderConfig) -> Architecture:
    scaling = config.rope.scaling
    kind = type(scaling).__name__.removesuffix("Scaling").lower()
    return Architecture(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.hidden_size,
        config.intermediate_size,
        config.max_position_embeddings,
        {"type": kind, **vars(scaling)} if scaling is not None else None,
        config.vocab_size,
        config.tie_word_embeddings,
    )


def text_facts(side_files: Mapping[str, bytes], config: Mapping[str, Any]) -> TextFacts | None:
    """None where there is no tokenizer."""
    if not any(name.startswith("tokenizer") for name in side_files):
        return None
    settings = _object(side_files, TOKENIZER_CONFIG)
    has_template = any(name in side_files for name in TEMPLATES) or bool(
        settings.get("chat_template")
    )
    tokens = {name: _content(settings.get(name)) for name in SPECIAL_TOKENS}
    return TextFacts(
        has_template,
        {name: token for name, token in tokens.items() if token is not None},
        _end_ids(side_files, config),
    )


def _end_ids(side_files: Mapping[str, bytes], config: Mapping[str, Any]) -> tuple[int, ...]:
    with suppress(InputError):
        return generation_config(side_files).token_ids("eos_token_id") or ConfigReader(
            config, CONFIG
        ).token_ids("eos_token_id")
    return ()


def sampling(side_files: Mapping[str, bytes]) -> dict[str, Any]:
    """What generation_config.json says of how to sample."""
    with suppress(InputError):
        data = generation_config(side_files).data
        return {
            key: value
            for key, value in data.items()
            if key not in NOT_SAMPLING and not key.startswith("_") and value is not None
        }
    return {}


def origin(place: Path, config: Mapping[str, Any]) -> Origin:
    """Of a folder, by its manifest and the hub's cache; else by what config.json says."""
    name, commit = name_and_commit(place)
    manifest: Mapping[str, Any] = {}
    if (place / MANIFEST).is_file():
        with suppress(DsconvError):
            manifest = read_json_object(place / MANIFEST)
    source = manifest.get("source")
    source = source if isinstance(source, dict) else {}
    made_by = manifest.get("versions")
    version = made_by.get("dsconv") if isinstance(made_by, dict) else None
    quantization = config.get(QUANTIZATION)
    tool = _tool(quantization)
    by = f"dsconv {version}" if isinstance(version, str) and tool is not None else tool
    return Origin(name, commit, *made_from(source), by)


def _tool(quantization: Any) -> str | None:
    """The method that config.json names, and the program where it does."""
    if not isinstance(quantization, dict):
        return None
    method, meta = _text(quantization.get("quant_method")), quantization.get("meta")
    program = meta.get("quantizer") if isinstance(meta, dict) else None
    program = program[0] if isinstance(program, list) and program else program
    return f"{method} ({program})" if method and _text(program) else method


def made_from(source: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Name and commit of what it all began with: an artifact's source may have one itself."""
    for _ in range(8):
        inner = source.get("made_from")
        if not isinstance(inner, dict) or not inner.get("name"):
            break
        source = inner
    return _text(source.get("name")), _text(source.get("commit"))


def _object(side_files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    with suppress(InputError):
        data = parse_json(side_files.get(name, b"{}"), name)
        return data if isinstance(data, dict) else {}
    return {}


def _content(token: Any) -> str | None:
    return _text(token.get("content") if isinstance(token, dict) else token)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
