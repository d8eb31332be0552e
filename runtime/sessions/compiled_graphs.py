"""Where what a provider compiles of a graph is kept; the folder may be deleted at any time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsconv.convert.files.cache_folder import default_folder
from dsconv.convert.files.hashes import FileHashes, artifact_files, combined


def compiled_folder(model: Path | bytes) -> Path:
    """For what a provider compiles of a graph, one folder per content of the whole artifact.

    TensorRT and MIGraphX know a compiled graph again by its structure. Artifacts of one
    architecture have the same graph over other weights: in one folder each would run the other's.

    Args:
        model: the graph's file in the artifact's folder, or a graph with its weights inside.

    Raises:
        InputError: a file cannot be read.
    """
    if isinstance(model, bytes):
        digest = hashlib.sha256(model).hexdigest()
    else:
        files = artifact_files(model.parent)
        digest = combined(FileHashes(default_folder()).of_files(files, model.parent))
    return default_folder() / "compiled" / digest
