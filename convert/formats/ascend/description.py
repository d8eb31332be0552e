"""The layout AscendV1, which vllm-ascend, SGLang and MindIE read: what its description says.

`quant_model_description.json` gives a type for every tensor of `quant_model_weights*.safetensors`.
Of type W8A8_DYNAMIC are, of a matrix `M`, `M.weight` (int8 [out, in]), `M.weight_scale` (float32
[out, 1]) and `M.weight_offset` (the same, zeros); inputs are rounded to int8 as they come, with one
scale per token. All else is FLOAT. Source: msModelSlim 26.1.0, its saver `ascendv1`; vllm-ascend,
modelslim_config.py and w8a8_dynamic.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.convert.checkpoint.module_patterns import read_patterns
from dsconv.convert.checkpoint.quantization_config import ConfigGroup, QuantizationConfig
from dsconv.convert.checkpoint.tensors import ASCEND_DESCRIPTION, SafetensorsSource
from dsconv.convert.files.json_file import read_json_object
from dsconv.errors import InputError, UnsupportedError
from dsconv.quant.int8_rows import Int8Rows

STEM = "quant_model_weights"
INT8, FLOAT = "W8A8_DYNAMIC", "FLOAT"
OFFSET = "weight_offset"
VERSION = "1.0.0"
# Keys beside the tensors: those that change nothing, and those that tell of rotations.
GENERAL, ROTATIONS = ("version", "model_quant_type", "group_size"), ("metadata", "optional")
CURE = "start from the unquantized checkpoint"


def describe_tensors(weight_map: Mapping[str, str], modules: frozenset[str]) -> dict[str, Any]:
    """The description of a folder.

    Args:
        weight_map: tensor -> file.
        modules: those of type W8A8_DYNAMIC.
    """
    kinds = ("weight", "weight_scale", OFFSET)
    int8 = {f"{module}.{kind}" for module in modules for kind in kinds}
    types: dict[str, Any] = {name: INT8 if name in int8 else FLOAT for name in weight_map}
    general = {"version": VERSION, "model_quant_type": INT8, "metadata": {}, "group_size": 0}
    return types | general | {"optional": {}}


def is_ascend_folder(folder: Path) -> bool:
    return (folder / ASCEND_DESCRIPTION).is_file()


def read_description(
    folder: Path, source: SafetensorsSource
) -> tuple[SafetensorsSource, QuantizationConfig]:
    """-> the tensors without the zeros, and which modules are int8.

    Raises:
        InputError: description and tensors do not belong together.
        UnsupportedError: types, rotations or offsets that dsconv does not know.
    """
    path = folder / ASCEND_DESCRIPTION
    types = {}
    for name, value in read_json_object(path).items():
        if name in GENERAL or (name in ROTATIONS and not value):
            continue
        if value not in (INT8, FLOAT):
            raise UnsupportedError(f"{path}: {name}: {value!r}, supported: {INT8}, {FLOAT}", CURE)
        types[name] = value
    unknown = sorted(types.keys() ^ set(source.names()))
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]}: either not described, or not among the tensors",
            "the folder is incomplete, or its files are of different models",
        )
    suffix = ".weight"
    modules = [
        name.removesuffix(suffix)
        for name, value in types.items()
        if value == INT8 and name.endswith(suffix)
    ]
    for module in modules:
        _check_offsets(folder, source, module)
    hidden = {f"{module}.{OFFSET}" for module in modules}
    infos = {name: info for name, info in source.infos.items() if name not in hidden}
    target = ConfigGroup(read_patterns(modules, str(path)), Int8Rows())
    nothing = read_patterns([], str(path))
    return SafetensorsSource(infos), QuantizationConfig((target,), nothing)


def _check_offsets(folder: Path, source: SafetensorsSource, module: str) -> None:
    name = f"{module}.{OFFSET}"
    info = source.infos.get(name)
    if info is None:
        raise InputError(f"{folder}: tensor {name!r} is missing", "the folder is incomplete")
    shape = (*source.infos[f"{module}.weight"].shape[:1], 1)
    if (info.dtype, info.shape) != ("F32", shape):
        raise InputError(
            f"{folder}: tensor {name!r} is {info.dtype} {list(info.shape)}, expected F32 "
            f"{list(shape)}",
            "its files are of different models",
        )
    if np.any(source.rows(name)):
        raise UnsupportedError(f"{folder}: {name}: offsets that are not 0", CURE)
