"""GGUF input: a file, or several that belong together, as the checkpoint it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families import read_family
from dsconv.convert.files.json_file import ConfigReader

from .container import refuse_unreadable
from .read_config import architecture_of, read_config
from .read_tokenizer import tokenizer_files
from .source import ROPE_DIVISORS, GgufSource, hugging_face_name
from .split import GgufModel, read_gguf

# Architectures whose rotary pairs llama.cpp wants side by side.
INTERLEAVED = ("llama",)
ROTARY = re.compile(r".*\.self_attn\.[qk]_proj\.(weight|bias)")


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or any part of several, as the checkpoint that it was converted from.

    Raises:
        InputError, UnsupportedError: with file, key or tensor, and the cure.
    """
    model = read_gguf(path)
    metadata = ConfigReader(model.metadata, str(path))
    architecture_of(metadata)
    refuse_unreadable(model.tensors)
    config = read_config(metadata, model.tensors)
    return Checkpoint(
        path,
        config,
        read_family(ConfigReader(config, str(path))),
        _source(model, config),
        tokenizer_files(metadata, config["vocab_size"]),
    )


def _source(model: GgufModel, config: Mapping[str, Any]) -> GgufSource:
    named = {
        hugging_face_name(name): tensor
        for name, tensor in model.tensors.items()
        if name != ROPE_DIVISORS
    }
    interleaved = (
        {name: config["head_dim"] for name in named if ROTARY.fullmatch(name)}
        if config["model_type"] in INTERLEAVED
        else {}
    )
    return GgufSource(model.files, named, interleaved)
