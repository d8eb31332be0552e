"""A checkpoint: config, family, tensors (opened lazily), tokenizer files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Parameter, Role, parameters_of
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, parse_json
from dsconv.convert.files.local_files import read_limited
from dsconv.errors import InputError
from dsconv.quant.schemes import QuantizedMatrix, Scheme

from .matrix_layout import read_quantized, read_zero_points
from .quantization_config import QuantizationConfig
from .tensors import TensorSource

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
# Carried along unchanged from checkpoint to quantized checkpoint to artifact.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
    "LICENSE",
)

# What weights may be stored in. FP8 is not among them: it means nothing without its scales.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
LARGE_SIDE_FILES = ("tokenizer.json", "vocab.json")


def module_of(parameter: str) -> str:
    """`a.b.weight` -> `a.b`."""
    return parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and all that belongs to them. `origin` is the folder or file they came from.

    notes: what whoever opened it should know, in words: what was left aside, what is read otherwise
    than its maker's software would.
    """

    origin: Path
    config: Mapping[str, Any]
    decoder: Decoder
    source: TensorSource
    side_files: Mapping[str, bytes]
    quantization: QuantizationConfig | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in parameters_of(self.decoder)}

    @property
    def parameter_count(self) -> int:
        return sum(parameter.size for parameter in self.parameters.values())

    @property
    def rounded_before(self) -> tuple[str, ...]:
        """How its file holds the matrices that are read as float and are stored in fewer bits."""
        stored = (
            self.source.storage(name)
            for name, parameter in self.parameters.items()
            if parameter.role is not Role.VECTOR and self.scheme(name) is None
        )
        return tuple(dict.fromkeys(kind for kind in stored if kind not in FLOAT_DTYPES))

    def scheme(self, name: str) -> Scheme | None:
        """How the parameter is quantized; None for float."""
        role = self.parameters[name].role
        if self.quantization is None or role is Role.VECTOR:
            return None
        kind = "Embedding" if role is Role.EMBEDDING else "Linear"
        return self.quantization.scheme_for(module_of(name), kind)

    def rounds_inputs(self, name: str) -> bool:
        """Are the activations that meet this weight rounded to int8?"""
        scheme = self.scheme(name)
        return scheme is not None and scheme.rounds_inputs

    def quantized_rows(self, name: str, start: int, stop: int) -> QuantizedMatrix:
        """Codes, scales and zero points of rows [start, stop) of a quantized parameter."""
        scheme = self.scheme(name)
        if scheme is None:
            raise RuntimeError(f"{name} is not quantized")
        columns = self.parameters[name].shape[1]
        return read_quantized(self.source, module_of(name), scheme, columns, start, stop)

    def zero_points(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """-> [stop - start, groups] of an asymmetric parameter."""
        scheme = self.scheme(name)
        if scheme is None or not scheme.has_zero_points:
            raise RuntimeError(f"{name} has no zero points")
        return read_zero_points(self.source, module_of(name), scheme, start, stop)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a parameter as float32, dequantized where it is quantized."""
        shape = self.parameters[name].shape
        stop = shape[0] if stop is None else stop
        if not 0 <= start <= stop <= shape[0]:  # what lies behind it is another tensor
            raise IndexError(f"{name}: rows {start} to {stop} of {shape[0]}")
        if self.scheme(name) is not None:
            return self.quantized_rows(name, start, stop).dequantize()
        return np.asarray(self.source.rows(name, start, stop), np.float32)

    def float_dtype(self, name: str) -> str:
        """The dtype in which a float copy of the parameter is stored; F64 is more than is read."""
        stored = "F16" if self.scheme(name) is not None else self.source.dtype(name)
        return "F32" if stored == "F64" else stored


def open_side_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer, chat template and generation config of a folder, as they are."""
    found = {}
    for name in SIDE_FILES:
        path = folder / name
        if os.path.lexists(path) and not path.is_dir():
            small = name.endswith(".json") and name not in LARGE_SIDE_FILES
            found[name] = read_limited(path, limits.JSON_BYTES if small else limits.SIDE_FILE_BYTES)
    return found


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Every id that ends a text: generation_config.json first, then config.json."""
    generation = generation_config(checkpoint.side_files)
    return generation.token_ids("eos_token_id") or ConfigReader(
        checkpoint.config, CONFIG
    ).token_ids("eos_token_id")


def refuse_special_ids_beyond(checkpoint: Checkpoint) -> None:
    """Tokens that begin or end a text must have a row of the embedding.

    Raises:
        InputError: naming the file and the key.
    """
    rows = checkpoint.decoder.config.vocab_size
    readers = (generation_config(checkpoint.side_files), ConfigReader(checkpoint.config, CONFIG))
    for reader in readers:
        for key in ("bos_token_id", "eos_token_id"):
            value = reader.data.get(key)
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, int) and token >= rows:
                    raise InputError(
                        f"{checkpoint.origin}: {reader.where}: {key} {token} is beyond the "
                        f"embedding, which has {rows} rows",
                        "resize the embedding of the original model to its tokenizer "
                        f"(resize_token_embeddings), or correct {key} in {reader.where}",
                    )


def generation_config(
    side_files: Mapping[str, bytes], config: Mapping[str, Any] | None = None
) -> ConfigReader:
    """generation_config.json; where there is none `config`, which held its keys before."""
    text = side_files.get(GENERATION_CONFIG)
    if text is None and config is not None:
        return ConfigReader(config, CONFIG)
    data = parse_json(text, GENERATION_CONFIG) if text is not None else {}
    if not isinstance(data, dict):
        raise InputError(f"{GENERATION_CONFIG}: not an object", "download the file again")
    return ConfigReader(data, GENERATION_CONFIG)
