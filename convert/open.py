"""Opening a model: any string that names one -> a Checkpoint whose tensors are what it promises."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dsconv.convert.checkpoint.check import checked
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, module_of, open_side_files
from dsconv.convert.checkpoint.no_model import refuse_file, refuse_folder_without_config
from dsconv.convert.checkpoint.stored_head import with_own_head, with_tied_name
from dsconv.convert.checkpoint.tensor_names import ExpectedNames, known_names
from dsconv.convert.checkpoint.tensors import (
    ASCEND_INDEX,
    SafetensorsSource,
    open_safetensors_folder,
)
from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.families.rope_config import with_portable_rope
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.formats.ascend.description import is_ascend_folder, read_description
from dsconv.convert.formats.foreign.settings import with_quantization
from dsconv.convert.formats.gguf.read import open_gguf
from dsconv.convert.formats.onnx.graph_source import open_graph_weights
from dsconv.convert.hub.model_name import likely_name, looks_like_hub_name
from dsconv.convert.hub.pull import snapshot
from dsconv.errors import InputError

QUANTIZATION = "quantization_config"
Attach = Callable[[SafetensorsSource], SafetensorsSource]


def open_folder(folder: Path, attach: Attach | None = None) -> Checkpoint:
    """Open a folder in the Hugging Face layout: float, quantized by whomever, or AscendV1.

    Names are made those of the architecture, then it is found out how the weights are quantized,
    then everything is compared with what config.json promises.

    Args:
        attach: where the files of the folder are headers without data, gives the source that has
            the data.

    Raises:
        InputError, UnsupportedError: with file, key or tensor, and the cure.
    """
    refuse_folder_without_config(folder)
    config = read_json_object(folder / CONFIG)
    decoder = read_family(ConfigReader(config, str(folder / CONFIG)))
    config = with_portable_rope(config, str(folder / CONFIG))
    if config.get("architectures") != [decoder.architecture]:  # as outputs must name it
        config = {**config, "architectures": [decoder.architecture]}
    in_graph = open_graph_weights(folder, config, decoder) if attach is None else None
    if in_graph is not None:
        files = open_side_files(folder)
        opened_graph = Checkpoint(folder, config, decoder, in_graph, files, in_graph.quantization)
        return checked(with_own_head(opened_graph))
    is_ascend = config.get(QUANTIZATION) is None and is_ascend_folder(folder)
    opened = open_safetensors_folder(
        folder, ASCEND_INDEX if is_ascend else None, has_data=attach is None
    )
    source, notes = _with_known_names(opened.source, decoder, folder)
    if attach is not None:
        source = attach(source)
    side_files = open_side_files(folder)
    checkpoint = Checkpoint(
        folder, config, decoder, source, side_files, None, (*opened.notes, *notes)
    )
    if is_ascend:
        described, quantization = read_description(folder, source)
        checkpoint = replace(checkpoint, source=described, quantization=quantization)
    else:
        checkpoint = with_quantization(checkpoint)
    return checked(with_own_head(checkpoint))


def _with_known_names(
    source: SafetensorsSource, decoder: Decoder, folder: Path
) -> tuple[SafetensorsSource, tuple[str, ...]]:
    parameters = parameters_of(decoder)
    base = decoder.layers_name.partition(".")[0] + "."
    head = decoder.head_linear.name
    expected = ExpectedNames(
        base,
        next(p.name for p in parameters if p.role is Role.VECTOR and p.name.startswith(base)),
        head,
        frozenset(module_of(parameter.name) for parameter in parameters) | {head},
    )
    renaming = known_names(source.infos.keys(), expected, str(folder))
    if any(stored != name for stored, name in renaming.names.items()):
        infos = {renaming.names[stored]: info for stored, info in source.infos.items()}
        source = source.with_infos(infos)
    if decoder.config.tie_word_embeddings:
        source = with_tied_name(source, decoder.table.name, head)
    return source, (renaming.note,) if renaming.note else ()


def open_checkpoint(model: str) -> Checkpoint:
    """Open a folder, a GGUF file, or a model of the hub (see `hub/model_name.py`).

    Raises:
        InputError, UnsupportedError, DownloadError: with the cure.
    """
    path = Path(model).expanduser()
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long or out of bounds
        return open_folder(path)
    if os.path.isfile(path):
        refuse_file(path)
        return checked(open_gguf(path))
    if looks_like_hub_name(model):
        return open_checkpoint(str(snapshot(model)))
    raise InputError(f"{model}: no such file or folder", likely_name(model))
