"""What exports do with a whole checkpoint: float tensors to one file, side files beside weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsconv.atomic import link_or_copy
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.jobs import Job, tensors_of
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.files.json_file import write_json
from dsconv.convert.files.safetensors import (
    DTYPES,
    PlannedTensor,
    SafetensorsWriter,
    read_tensor_infos,
)
from dsconv.progress import Advance

WEIGHTS = "model.safetensors"
CHUNK_WEIGHTS = 1 << 22
CHUNK_BYTES = 1 << 24
LINKED_SIDE_FILE_BYTES = 1 << 18  # tokenizer.json of a large vocabulary is linked like weights


def planned_floats(checkpoint: Checkpoint) -> list[PlannedTensor]:
    return [
        PlannedTensor(name, checkpoint.float_dtype(name), parameter.shape)
        for name, parameter in checkpoint.parameters.items()
    ]


def write_float_checkpoint(
    checkpoint: Checkpoint, folder: Path, advance: Advance = lambda count: None
) -> Checkpoint:
    """Write config, tokenizer files and dequantized weights into `folder` -> what is there now.

    Quantized tensors are stored as float16, the others in their own dtype.
    """
    planned = planned_floats(checkpoint)
    with SafetensorsWriter(folder / WEIGHTS, planned) as writer:
        for tensor in planned:
            rows = tensor.shape[0]
            step = max(1, CHUNK_WEIGHTS // int(np.prod(tensor.shape[1:], dtype=np.int64)))
            for start in range(0, rows, step):
                values = checkpoint.rows(tensor.name, start, min(rows, start + step))
                writer.write(tensor.name, values.astype(DTYPES[tensor.dtype]))
                advance(values.size)
    config = {key: v for key, v in checkpoint.config.items() if key != "quantization_config"}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    for name, content in checkpoint.side_files.items():
        (folder / name).write_bytes(content)
    source = SafetensorsSource(read_tensor_infos(folder / WEIGHTS))
    return replace(checkpoint, origin=folder, config=config, source=source, quantization=None)


def write_whole_checkpoint(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same, of a source that is no safetensors folder, with codes as they are."""
    source = checkpoint.source
    jobs = [
        Job(parameter, name, scheme, source.dtype(name) if scheme is None else "")
        for name, parameter in checkpoint.parameters.items()
        for scheme in [checkpoint.scheme(name)]
    ]
    planned = tensors_of(jobs)
    with SafetensorsWriter(folder / WEIGHTS, planned) as writer:
        for tensor in planned:
            rows = tensor.shape[0]
            step = max(1, CHUNK_BYTES * rows // max(1, tensor.nbytes))
            for start in range(0, rows, step):
                values = source.rows(tensor.name, start, min(rows, start + step))
                writer.write(tensor.name, values)
    write_json(folder / CONFIG, dict(checkpoint.config))
    for name, content in checkpoint.side_files.items():
        (folder / name).write_bytes(content)
    whole = SafetensorsSource(read_tensor_infos(folder / WEIGHTS))
    return replace(checkpoint, origin=folder, source=whole)


def place_side_files(checkpoint: Checkpoint, folder: Path, copy: bool) -> int:
    """Put the tokenizer's files of a folder into another -> bytes that are links."""
    linked = 0
    for name, content in checkpoint.side_files.items():
        if len(content) < LINKED_SIDE_FILE_BYTES:  # small ones are edited by people: no links
            (folder / name).write_bytes(content)
        elif not link_or_copy(checkpoint.origin / name, folder / name, copy):
            linked += len(content)
    return linked
