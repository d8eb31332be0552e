"""Opening a model: any string that names one -> a Checkpoint whose tensors are what it promises."""

from __future__ import annotations

import os
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, module_of, open_side_files
from dsconv.convert.checkpoint.matrix_layout import SHAPE, has_shape_tensor, stored_tensors
from dsconv.convert.checkpoint.quantization_config import read_quantization_config
from dsconv.convert.checkpoint.tensors import (
    ASCEND_INDEX,
    PICKLE_SUFFIXES,
    SafetensorsSource,
    open_safetensors_folder,
)
from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.rope_config import with_portable_rope
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.local_files import open_regular
from dsconv.convert.formats.ascend.description import is_ascend_folder, read_description
from dsconv.convert.formats.gguf.read import open_gguf
from dsconv.convert.hub.model_name import looks_like_hub_name
from dsconv.convert.hub.pull import snapshot
from dsconv.errors import InputError, UnsupportedError

# What weights may be stored in. FP8 is not among them: it means nothing without its scales.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")


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
        tensors = open_safetensors_folder(folder, ASCEND_INDEX)
        source, quantization = read_description(folder, tensors)
    else:
        source = open_safetensors_folder(folder)
    checkpoint = Checkpoint(
        folder,
        with_portable_rope(config, reader.where),
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
    """Open a folder, a GGUF file, or a model of the hub (see `hub/model_name.py`).

    Raises:
        InputError, UnsupportedError, DownloadError: with the cure.
    """
    path = Path(model).expanduser()
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long or out of bounds
        return open_folder(path)
    if os.path.isfile(path):
        return _open_file(path)
    if looks_like_hub_name(model):
        return open_checkpoint(str(snapshot(model)))
    raise InputError(
        f"{model}: no such file or folder", "use a folder, a .gguf file, or a hub name (org/model)"
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
        checkpoint = open_gguf(path)
        check_tensors(checkpoint)
        return checkpoint
    raise InputError(
        f"{path}: neither a folder nor a GGUF file",
        "use the folder that holds config.json, or a .gguf file",
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
