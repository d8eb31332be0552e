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

from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Parameter, Role, parameters_of
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.convert.files.local_files import open_regular, read_limited
from dsconv.convert.formats.ascend.description import INDEX_NAME, is_ascend_folder, read_description
from dsconv.errors import InputError, UnsupportedError
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.rounding import AnyQuantized, AnyScheme, dequantize

from .matrix_layout import SHAPE, has_shape_tensor, read_quantized, read_zero_points, stored_tensors
from .quantization_config import QuantizationConfig, read_quantization_config
from .tensors import PICKLE_SUFFIXES, SafetensorsSource, TensorSource, open_safetensors_folder

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
LARGE_SIDE_FILES = ("tokenizer.json", "vocab.json")
# What weights may be stored in. FP8 is not among them: it means nothing without its scales.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")


def module_of(parameter: str) -> str:
    """`a.b.weight` -> `a.b`."""
    return parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and all that belongs to them. `origin` is the folder or file they came from."""

    origin: Path
    config: Mapping[str, Any]
    decoder: Decoder
    source: TensorSource
    side_files: Mapping[str, bytes]
    quantization: QuantizationConfig | None = None

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in parameters_of(self.decoder)}

    @property
    def parameter_count(self) -> int:
        return sum(parameter.size for parameter in self.parameters.values())

    def scheme(self, name: str) -> AnyScheme | None:
        """How the parameter is quantized; None for float."""
        role = self.parameters[name].role
        if self.quantization is None or role is Role.VECTOR:
            return None
        kind = "Embedding" if role is Role.EMBEDDING else "Linear"
        return self.quantization.scheme_for(module_of(name), kind)

    def rounds_inputs(self, name: str) -> bool:
        """Are the activations that meet this weight rounded to int8?"""
        return isinstance(self.scheme(name), Int8Rows)

    def quantized_rows(self, name: str, start: int, stop: int) -> AnyQuantized:
        """Codes, scales and zero points of rows [start, stop) of a quantized parameter."""
        scheme = self.scheme(name)
        if scheme is None:
            raise RuntimeError(f"{name} is not quantized")
        columns = self.parameters[name].shape[1]
        return read_quantized(self.source, module_of(name), scheme, columns, start, stop)

    def zero_points(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """-> [stop - start, groups] of an asymmetric parameter."""
        scheme = self.scheme(name)
        if not isinstance(scheme, IntegerScheme):
            raise RuntimeError(f"{name} has no zero points")
        return read_zero_points(self.source, module_of(name), scheme, start, stop)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a parameter as float32, dequantized where it is quantized."""
        shape = self.parameters[name].shape
        stop = shape[0] if stop is None else stop
        if self.scheme(name) is not None:
            return dequantize(self.quantized_rows(name, start, stop))
        return np.asarray(self.source.rows(name, start, stop), np.float32)

    def float_dtype(self, name: str) -> str:
        """The dtype in which a float copy of the parameter is stored."""
        return "F16" if self.scheme(name) is not None else self.source.dtype(name)


def open_side_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer, chat template and generation config of a folder, as they are."""
    found = {}
    for name in SIDE_FILES:
        path = folder / name
        if os.path.lexists(path) and not path.is_dir():
            small = name.endswith(".json") and name not in LARGE_SIDE_FILES
            found[name] = read_limited(path, limits.JSON_BYTES if small else limits.SIDE_FILE_BYTES)
    return found


def open_folder(folder: Path) -> Checkpoint:
    """Open a folder in the Hugging Face layout: float, compressed-tensors, or AscendV1.

    Raises:
        InputError, UnsupportedError: with file, key or tensor, and the cure.
    """
    config = read_json_object(folder / CONFIG)
    reader = ConfigReader(config, str(folder / CONFIG))
    decoder = read_family(reader)
    child = reader.child("quantization_config")
    quantization = read_quantization_config(child) if child is not None else None
    if quantization is None and is_ascend_folder(folder):
        tensors = open_safetensors_folder(folder, INDEX_NAME)
        source, quantization = read_description(folder, tensors)
    else:
        source = open_safetensors_folder(folder)
    checkpoint = Checkpoint(
        folder,
        config,
        decoder,
        _with_tied_name(source, decoder),
        open_side_files(folder),
        quantization,
    )
    check_tensors(checkpoint)
    return checkpoint


def _with_tied_name(source: SafetensorsSource, decoder: Decoder) -> SafetensorsSource:
    """Some tied checkpoints store the one matrix under the head's name; give it the embedding's."""
    table, head = f"{decoder.table.name}.weight", f"{decoder.head_linear.name}.weight"
    if decoder.config.tie_word_embeddings and table not in source.infos and head in source.infos:
        return SafetensorsSource({**source.infos, table: source.infos[head]})
    return source


def open_checkpoint(model: str) -> Checkpoint:
    """Open a folder, a GGUF file, or a model of the hub (see `hub/reference.py`).

    Raises:
        InputError, UnsupportedError, DownloadError: with the cure.
    """
    from dsconv.convert.hub import looks_like_hub_name, snapshot

    path = Path(model).expanduser()
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long or out of bounds
        return open_folder(path)
    if os.path.isfile(path):
        return _open_file(path)
    if looks_like_hub_name(model):
        return open_checkpoint(str(snapshot(model)))
    raise InputError(
        f"{model}: no such file or folder", "give a folder, a .gguf file, or a hub name (org/model)"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedError(
            f"{path}: pickle files can run code when opened and are refused",
            "use the model's safetensors files",
        )
    try:
        with open_regular(path) as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}", "check the path") from error
    if magic == b"GGUF":
        from dsconv.convert.formats.gguf.read import open_gguf

        checkpoint = open_gguf(path)
        check_tensors(checkpoint)
        return checkpoint
    raise InputError(
        f"{path}: neither a folder nor a GGUF file",
        "give the folder that holds config.json, or a .gguf file",
    )


def _first_missing(checkpoint: Checkpoint, present: set[str]) -> str:
    modules = {module_of(name) for name in present}
    missing = (name for name in checkpoint.parameters if module_of(name) not in modules)
    return f"tensor {next(missing, '…')!r} is missing"


def _expected_tensors(
    checkpoint: Checkpoint,
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name, shape and allowed dtypes of everything the files must hold."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for name, parameter in checkpoint.parameters.items():
        scheme = checkpoint.scheme(name)
        if scheme is None:
            expected[name] = (parameter.shape, FLOAT_DTYPES)
            continue
        rows, columns = parameter.shape
        module = module_of(name)
        for tensor in stored_tensors(module, (rows, columns), scheme):
            dtypes = FLOAT_DTYPES if tensor.dtype in FLOAT_DTYPES else (tensor.dtype,)
            expected[tensor.name] = (tensor.shape, dtypes)
        if has_shape_tensor(scheme):
            expected[f"{module}.{SHAPE}"] = ((2,), ("I64", "I32"))
    return expected


def check_tensors(checkpoint: Checkpoint) -> None:
    """Compare the files with what the config promises, by names, shapes and dtypes.

    Raises:
        InputError: a tensor is missing or has another shape or kind of number, or one is there
            that the architecture does not know (ignoring it would change the model in silence).
    """
    source, where = checkpoint.source, checkpoint.origin
    present = set(source.names())
    promised = len(checkpoint.parameters)
    if promised > len(present) + 1:  # before anything is done for each of a thousand layers
        raise InputError(
            f"{where}: {len(present)} tensors, config.json promises {promised} or more: "
            f"{_first_missing(checkpoint, present)}",
            "the download is incomplete, or config.json belongs to another model",
        )
    expected = _expected_tensors(checkpoint)
    for name, (shape, dtypes) in expected.items():
        if name not in present:
            raise InputError(
                f"{where}: tensor {name!r} is missing",
                "the download is incomplete, or config.json belongs to another model",
            )
        if source.shape(name) != shape:
            raise InputError(
                f"{where}: tensor {name!r} has shape {list(source.shape(name))}, "
                f"config.json gives {list(shape)}",
                "config.json belongs to another model",
            )
        if source.dtype(name) not in dtypes:
            raise InputError(
                f"{where}: tensor {name!r} is stored as {source.dtype(name)}, "
                f"expected {' or '.join(dtypes)}",
                "it was quantized by another tool; start from the unquantized checkpoint",
            )
    decoder = checkpoint.decoder
    ignorable = (
        {f"{decoder.head_linear.name}.weight"} if decoder.config.tie_word_embeddings else set()
    )
    for name in sorted(present - expected.keys() - ignorable):
        if not name.endswith("rotary_emb.inv_freq"):  # a buffer that old exports carry along
            raise InputError(
                f"{where}: tensor {name!r} is not part of {checkpoint.decoder.architecture}",
                "config.json belongs to another model, or it needs a setting that enables it",
            )


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Every id that ends a text: generation_config.json first, then config.json."""
    generation = generation_config(checkpoint.side_files)
    return generation.token_ids("eos_token_id") or ConfigReader(
        checkpoint.config, CONFIG
    ).token_ids("eos_token_id")


def generation_config(side_files: Mapping[str, bytes]) -> ConfigReader:
    """generation_config.json, empty when there is none."""
    text = side_files.get(GENERATION_CONFIG)
    data = parse_json(text, GENERATION_CONFIG) if text is not None else {}
    if not isinstance(data, dict):
        raise InputError(f"{GENERATION_CONFIG}: not an object", "download the file again")
    return ConfigReader(data, GENERATION_CONFIG)
