"""Export a checkpoint with int8 weights and activations as AscendV1, for Huawei Ascend.

Codes and scales go over byte for byte; biases become float32 and a quantized head float16, as
msModelSlim writes them and vllm-ascend takes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsconv.atomic import output_folder, require_space
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.checkpoint.tensors import ASCEND_DESCRIPTION, ASCEND_INDEX, write_index
from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import write_json
from dsconv.convert.files.safetensors import PlannedTensor, SafetensorsWriter
from dsconv.convert.formats.float_copy import place_side_files
from dsconv.convert.formats.notes import notes_on
from dsconv.convert.formats.repack import (
    WIDE_FLOAT,
    Repacking,
    RepackResult,
    finish_folder,
    float_dtype,
)
from dsconv.errors import UnsupportedError
from dsconv.progress import Advance

from .description import OFFSET, STEM, describe_tensors

WHY_FLOAT = "embedding and head are float there (--head-bits 16 keeps the original's)"


def export_ascend(
    checkpoint: Checkpoint,
    output: Path,
    copy: bool = False,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
) -> RepackResult:
    """Write the folder `output`.

    Args:
        copy: never hard-link.
        advance: told the number of weights done.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: not quantized with int8 activations.
    """
    jobs = _jobs(checkpoint)
    repacking = Repacking(checkpoint, jobs)
    offsets = [
        PlannedTensor(f"{job.module}.{OFFSET}", "F32", (job.parameter.shape[0], 1))
        for job in jobs
        if job.scheme is not None
    ]
    zeros = sum(tensor.nbytes for tensor in offsets)
    require_space(output, repacking.new_bytes(output, copy) + zeros)
    count = len(repacking.files) + 1
    names = [f"{STEM}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    with output_folder(output, overwrite) as folder:
        linked = place_side_files(checkpoint, folder, copy)
        named = dict(zip(repacking.files, names, strict=False))  # the last is of the zeros
        placed = repacking.place(folder, named, copy, advance)
        linked += placed.linked_bytes
        with SafetensorsWriter(folder / names[-1], offsets) as writer:
            for tensor in offsets:
                writer.write(tensor.name, np.zeros(tensor.shape, np.float32))
        weight_map = placed.weight_map | {tensor.name: names[-1] for tensor in offsets}
        write_index(folder / ASCEND_INDEX, weight_map, placed.tensor_bytes + zeros)
        modules = frozenset(job.module for job in jobs if job.scheme is not None)
        write_json(folder / ASCEND_DESCRIPTION, describe_tensors(weight_map, modules))
        write_json(folder / CONFIG, _without_quantization(checkpoint))
        notes = notes_on(checkpoint, jobs, placed.errors, WHY_FLOAT)
        return finish_folder(checkpoint, folder, "ascend", jobs, notes, linked)


def _without_quantization(checkpoint: Checkpoint) -> dict[str, object]:
    """vLLM would take it for compressed-tensors."""
    return {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}


def _jobs(checkpoint: Checkpoint) -> list[Job]:
    """One per parameter in network order."""
    jobs = []
    for name, parameter in checkpoint.parameters.items():
        scheme = checkpoint.scheme(name)
        dtype = float_dtype(checkpoint, name)
        if parameter.role is Role.LINEAR:
            if scheme is None or not scheme.rounds_inputs:
                raise UnsupportedError(
                    f"{checkpoint.origin}: {name}: is not int8 with int8 activations, as Ascend "
                    "reads it",
                    "quantize with --bits 8 --activations int8; or use --format compressed-tensors",
                )
        else:
            scheme = None
        if name.endswith(".bias"):
            dtype = WIDE_FLOAT
        jobs.append(Job(parameter, name, scheme, dtype))
    return jobs
