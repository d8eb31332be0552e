"""What is in a checkpoint, a quantized checkpoint, a GGUF file or an exported artifact."""

from __future__ import annotations

import math
import os
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, module_of
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.config_only import is_lone_config
from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Parameter, parameters_of
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.convert.formats.native.file import NativeFile, open_native_file
from dsconv.convert.formats.native.format import SUFFIX
from dsconv.convert.formats.native.linear_layout import LinearLayout
from dsconv.convert.formats.onnx.names import FIXED_SHAPES, GENAI_CONFIG
from dsconv.convert.hub.model_name import looks_like_hub_name
from dsconv.convert.hub.pull import snapshot
from dsconv.convert.inspect.gguf_facts import gguf_origin
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UnsupportedError

from .description import Description, TensorRow
from .model_facts import (
    Origin,
    architecture,
    made_from,
    origin,
    sampling,
    text_facts,
)
from .raw_description import describe_raw

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def survey(model: str) -> Description:
    """Describe a model, or show what can be shown of what is none, with the reason why.

    Raises:
        InputError, UnsupportedError, DownloadError: a folder with config.json that does not open
            as the model it claims to be, or there is nothing to show.
    """
    try:
        return describe(model)
    except (InputError, UnsupportedError) as error:
        path = Path(model).expanduser()
        if not os.path.exists(path) and looks_like_hub_name(model):
            path = snapshot(model)
        if (path / CONFIG).exists():
            raise
        found = describe_raw(path, error) if os.path.exists(path) else None
        if found is None:
            raise
        return found


def describe(model: str) -> Description:
    """Describe a folder, file or hub model; of a lone config.json, what it announces.

    Raises:
        InputError, UnsupportedError, DownloadError: as when opening it.
    """
    folder = Path(model).expanduser()
    if is_lone_config(folder):
        return _announced(folder / CONFIG)
    if folder.suffix == SUFFIX and folder.is_file():
        return _native(folder)
    checkpoint = open_checkpoint(model)
    rows = tuple(_row(checkpoint, parameter) for parameter in checkpoint.parameters.values())
    place = checkpoint.origin
    return Description(
        _kind(place, checkpoint),
        checkpoint.decoder.model_type,
        checkpoint.parameter_count,
        sum(row.size_bytes for row in rows),
        rows,
        checkpoint.notes,
        architecture(checkpoint.decoder.config),
        text_facts(checkpoint.side_files, checkpoint.config),
        sampling(checkpoint.side_files),
        gguf_origin(place) if place.is_file() else origin(place, checkpoint.config),
    )


def _kind(folder: Path, checkpoint: Checkpoint) -> str:
    if (folder / GENAI_CONFIG).is_file() or (folder / FIXED_SHAPES).is_file():
        return "onnx"
    if folder.is_file():
        return "gguf"
    is_plain = checkpoint.quantization is None and not checkpoint.rounded_before
    return "checkpoint" if is_plain else "quantized-checkpoint"


def _row(checkpoint: Checkpoint, parameter: Parameter) -> TensorRow:
    name, source = parameter.name, checkpoint.source
    scheme = checkpoint.scheme(name)
    if scheme is None:
        return TensorRow(name, parameter.shape, source.storage(name), source.nbytes(name))
    rows, columns = parameter.shape
    tensors = stored_tensors(module_of(name), (rows, columns), scheme)
    size = sum(source.nbytes(tensor.name) for tensor in tensors)
    return TensorRow(name, parameter.shape, scheme.description, size, scheme.rounds_inputs)


def _announced(config: Path) -> Description:
    reader = ConfigReader(read_json_object(config), str(config))
    decoder = read_family(reader)
    dtype = reader.string("torch_dtype", reader.string("dtype", "bfloat16"))
    width = DTYPE_BYTES.get(dtype, 2)
    rows = tuple(
        TensorRow(parameter.name, parameter.shape, dtype, parameter.size * width)
        for parameter in parameters_of(decoder)
    )
    parameters = sum(parameter.size for parameter in parameters_of(decoder))
    size = sum(row.size_bytes for row in rows)
    return Description(
        *("config", decoder.model_type, parameters, size, rows, ()),
        architecture(decoder.config),
        origin=origin(config.parent, reader.data),
    )


def _native(path: Path) -> Description:
    file = open_native_file(path)
    damaged = file.damaged_tensors()
    if damaged:
        raise InputError(
            f"{path}: tensor {damaged[0]!r} is not what was written (its sha256 differs)",
            "copy or download the file again",
        )
    matrices = file.metadata.matrices
    rows = []
    for info in file.weights:
        layout = matrices.get(info.name)
        shape = info.shape if layout is None else (layout.rows, layout.cols)
        storage = info.dtype if layout is None else _native_storage(layout)
        rows.append(TensorRow(info.name, shape, storage, info.nbytes))
    return Description(
        "native",
        str(file.metadata.config.get("model_type", "unknown")),
        sum(math.prod(row.shape) for row in rows),
        sum(row.size_bytes for row in rows),
        tuple(rows),
        (),
        architecture(read_family(ConfigReader(file.metadata.config, str(path))).config),
        text_facts(file.side_files, file.metadata.config),
        sampling(file.side_files),
        _native_origin(file),
    )


def _native_origin(file: NativeFile) -> Origin:
    """The source that the file names, and who wrote the file."""
    texts = file.metadata.origin
    source = parse_json(texts.get("provenance", "{}"), f"{file.path}: provenance")
    found = made_from(source if isinstance(source, dict) else {})
    return Origin(file.path.name, None, *found, f"dsconv {texts.get('dsconv', '')}".strip())


def _native_storage(layout: LinearLayout) -> str:
    if not layout.kind.startswith("int"):
        return layout.kind.replace("scale_min", "scale-min ")
    group = f"g{layout.group_size}" if layout.group_size else "row"
    return f"{layout.kind} {group} {'asymmetric' if layout.zero_points else 'symmetric'}"
