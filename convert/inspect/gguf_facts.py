"""What a GGUF file says of itself, whether dsconv can read its weights or not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.files.json_file import parse_json
from dsconv.convert.formats.gguf.container import GgufTensor
from dsconv.convert.formats.gguf.read_config import ARCHITECTURE
from dsconv.convert.formats.gguf.read_tokenizer import PREFIX
from dsconv.convert.formats.gguf.seal import KEY
from dsconv.convert.formats.gguf.split import read_gguf
from dsconv.errors import InputError

from .model_facts import Architecture, Origin, TextFacts, made_from

# Where converters write what a file was made of, the most telling first.
SOURCES = (
    "general.source.huggingface.repository",
    "general.base_model.0.repo_url",
    "general.source.repo_url",
    "general.source.url",
    "general.repo_url",
)
QUANTIZED_BY = "general.quantized_by"
TEMPLATE = "tokenizer.chat_template"
SIZES: Mapping[str, str] = {
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_size": "attention.key_length",
    "hidden_size": "embedding_length",
    "feed_forward_size": "feed_forward_length",
    "context_length": "context_length",
    "vocabulary": "vocab_size",
}


@dataclass(frozen=True)
class GgufFacts:
    family: str
    architecture: Architecture
    text: TextFacts | None
    origin: Origin
    tensors: Mapping[str, GgufTensor]


def gguf_origin(path: Path) -> Origin:
    """Raises InputError, UnsupportedError: the file cannot be read."""
    return _origin(path, read_gguf(path).metadata)


def gguf_facts(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> GgufFacts:
    arch = str(metadata.get(ARCHITECTURE, "unknown"))
    return GgufFacts(
        arch,
        _architecture(arch, metadata, tensors),
        _text_facts(metadata),
        _origin(path, metadata),
        tensors,
    )


def _architecture(
    arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Architecture:
    sizes: dict[str, Any] = {}
    for field, key in SIZES.items():
        value = metadata.get(f"{arch}.{key}")
        sizes[field] = value if type(value) is int else None
    tokens = metadata.get(f"{PREFIX}.tokens")
    if sizes["vocabulary"] is None and isinstance(tokens, list):
        sizes["vocabulary"] = len(tokens)
    if sizes["head_size"] is None and sizes["hidden_size"] and sizes["heads"]:
        sizes["head_size"] = sizes["hidden_size"] // sizes["heads"]
    prefix = f"{arch}.rope.scaling."
    scaling = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and not isinstance(value, list)
    }
    tied = "output.weight" not in tensors if "token_embd.weight" in tensors else None
    return Architecture(**sizes, rope_scaling=scaling or None, tied_embeddings=tied)


def _text_facts(metadata: Mapping[str, Any]) -> TextFacts | None:
    tokens = metadata.get(f"{PREFIX}.tokens")
    if not isinstance(tokens, list):
        return None
    found, ends = {}, []
    for name in ("bos", "eos", "eot", "padding", "unknown"):
        number = metadata.get(f"{PREFIX}.{name}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            found[f"{name}_token"] = str(tokens[number])
            if name in ("eos", "eot"):
                ends.append(number)
    return TextFacts(bool(metadata.get(TEMPLATE)), found, tuple(dict.fromkeys(ends)))


def _origin(path: Path, metadata: Mapping[str, Any]) -> Origin:
    seal: Any = {}
    if isinstance(text := metadata.get(KEY), str):
        with suppress(InputError):
            seal = parse_json(text, f"{path}: {KEY}")
    source = seal.get("source") if isinstance(seal, dict) else None
    name, commit = made_from(source) if isinstance(source, dict) else (None, None)
    if name is None:
        named = (metadata.get(key) for key in (*SOURCES, "general.name"))
        name = next((value for value in named if isinstance(value, str) and value), None)
    by = metadata.get(QUANTIZED_BY)
    return Origin(path.name, None, name, commit, by if isinstance(by, str) and by else None)
