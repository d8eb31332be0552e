"""Export a quantized checkpoint as a folder that transformers and vLLM load as it is.

`readable.py` decides what becomes of every matrix, `repacking.py` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..atomic import output_folder
from ..disk_space import require_space
from .checkpoint import CONFIG, Checkpoint, module_of
from .compressed_tensors import build_quantization_config
from .export_notes import notes_on
from .families import read_family
from .families.inventory import Role, parameters_of
from .json_file import ConfigReader, write_json
from .materialize import place_side_files
from .quantization_plan import Job
from .readable import readable_schemes
from .repacking import Repacking, RepackResult, finish_folder, float_dtype
from .sources import INDEX, write_index


def export_compressed_tensors(
    checkpoint: Checkpoint,
    output: Path,
    copy: bool = False,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
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
