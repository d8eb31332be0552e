"""Export a quantized checkpoint as a folder that transformers and vLLM load as it is.

`portable_schemes.py` decides what becomes of every matrix, `repack.py` does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsconv.atomic import output_folder, require_space
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, module_of
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.checkpoint.quantization_config import build_quantization_config
from dsconv.convert.checkpoint.tensors import write_index
from dsconv.convert.checkpoint.weight_files import INDEX
from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.files.json_file import ConfigReader, write_json
from dsconv.convert.formats.float_copy import place_side_files
from dsconv.convert.formats.notes import notes_on
from dsconv.convert.formats.repack import Repacking, RepackResult, finish_folder, float_dtype
from dsconv.progress import Advance

from .portable_schemes import readable_schemes


def export_compressed_tensors(
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
        UnsupportedError: not quantized, or with scale and minimum.
    """
    config, jobs = _plan(checkpoint)
    repacking = Repacking(checkpoint, jobs)
    require_space(output, repacking.new_bytes(output, copy))
    with output_folder(output, overwrite) as folder:
        linked = place_side_files(checkpoint, folder, copy)
        names = {path: path.name for path in repacking.files}
        placed = repacking.place(folder, names, copy, advance)
        linked += placed.linked_bytes
        if (checkpoint.origin / INDEX).exists():
            write_index(folder / INDEX, placed.weight_map, placed.tensor_bytes)
        write_json(folder / CONFIG, config)
        notes = notes_on(checkpoint, jobs, placed.errors)
        return finish_folder(checkpoint, folder, "compressed-tensors", jobs, notes, linked)


def _plan(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Job]]:
    """-> (config.json, one job per parameter in network order)."""
    decoder = checkpoint.decoder
    table, head = decoder.table.name, decoder.head_linear.name
    schemes = readable_schemes(checkpoint)
    config = dict(checkpoint.config)
    if decoder.config.tie_word_embeddings and head in schemes:
        config["tie_word_embeddings"] = False
    jobs = []
    for parameter in parameters_of(read_family(ConfigReader(config, CONFIG))):
        source = parameter.name if parameter.name in checkpoint.parameters else f"{table}.weight"
        scheme = None if parameter.role is Role.VECTOR else schemes[module_of(parameter.name)]
        jobs.append(Job(parameter, source, scheme, float_dtype(checkpoint, source)))
    schemes.setdefault(head, schemes[table])
    config["quantization_config"] = build_quantization_config(schemes, [table], head)
    return config, jobs
