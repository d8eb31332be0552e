"""Where the weights of an ONNX graph lie: which file, which bytes, and may they be read?

ONNX Runtime follows the names in a graph wherever a link leads. Before it sees a graph, every
location is looked at: a regular file below the graph's folder, as many bytes as the tensor's shape
takes, inside the file.

A symbolic link is refused, except into the hub's own cache (`blobs/HASH`), which the hub's client
makes. A file with several names (hard links) is refused too, for one of them may be a secret's,
unless its content proves that it holds weights: a whole safetensors file, as exports share it with
the quantized checkpoint, or the bytes whose hash the folder's dsconv.json gives.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST
from dsconv.convert.files import limits
from dsconv.convert.files.hashes import sha256_file
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.files.local_files import open_regular, read_limited, safe_join
from dsconv.convert.files.safetensors import read_tensor_infos
from dsconv.errors import InputError

HUB_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
HINT = "the graph is damaged or hostile; export it again, or fetch it again"
# Bits of an element by its number in onnx.TensorProto.DataType; strings cannot lie outside.
BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64},
    **{14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2},
    **{26: 2},
}


@dataclass(frozen=True)
class ExternalRange:
    """The bytes of one tensor. `path` is inside the graph's folder, and nothing more is proven."""

    name: str
    path: Path
    offset: int
    length: int


def read_model(path: Path) -> Any:
    """An onnx.ModelProto without its external weights.

    Raises:
        InputError: it is missing, too large or no ONNX file.
    """
    data = read_limited(path, limits.GRAPH_BYTES)
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own class, which moved between its versions
        raise InputError(f"{path}: not an ONNX file", "use a .onnx file or its folder") from error
    if not model.graph.node:
        raise InputError(f"{path}: a graph without nodes", "use a .onnx file or its folder")
    return model


def tensors_of(graph: Any) -> Iterator[Any]:
    """Every TensorProto of a graph: weights, constants, those of bodies inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(body)


def external_range(tensor: Any, graph_file: Path) -> ExternalRange | None:
    """Where a tensor's bytes lie; None for one that is in the graph itself.

    Raises:
        InputError: the name leads out of the folder, or the numbers are none.
    """
    if not tensor.external_data and tensor.data_location != 1:
        return None
    where = f"{graph_file}: tensor {tensor.name!r}"
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise InputError(f"{where}: {entry.key!r} is given twice", HINT)
        entries[entry.key] = entry.value
    path = safe_join(graph_file.parent, entries.get("location"), where, folders=True)
    expected = _bytes_of(tensor, where)
    length = _natural(entries, "length", expected, where)
    if length != expected:
        raise InputError(
            f"{where}: {length} bytes, its shape {list(tensor.dims)} takes {expected}", HINT
        )
    return ExternalRange(tensor.name, path, _natural(entries, "offset", 0, where), length)


def _natural(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InputError(f"{where}: {key} {text[:40]!r} is not a number of bytes", HINT)
    return int(text)


def _bytes_of(tensor: Any, where: str) -> int:
    bits = BITS.get(tensor.data_type)
    if bits is None or any(dim < 0 for dim in tensor.dims):
        raise InputError(
            f"{where}: type {tensor.data_type}, shape {list(tensor.dims)} cannot lie in a file",
            HINT,
        )
    return -(-math.prod(map(int, tensor.dims)) * bits // 8)


def check_external_data(graph_file: Path, model: Any) -> None:
    """Look at every file that a graph (onnx.ModelProto, read from `graph_file`) refers to.

    Raises:
        InputError: naming the tensor, the file and what is wrong with it.
    """
    tensors = [*tensors_of(model.graph)]
    for function in model.functions:
        tensors += _tensors_of_nodes(function.node)
    sizes: dict[Path, int] = {}
    for tensor in tensors:
        found = external_range(tensor, graph_file)
        if found is None:
            continue
        if found.path not in sizes:
            sizes[found.path] = readable_size(found.path, graph_file.parent)
        end = found.offset + found.length
        if end > sizes[found.path]:
            raise InputError(
                f"{graph_file}: tensor {found.name!r} ends at byte {end} of {found.path.name}, "
                f"which has {sizes[found.path]}",
                HINT,
            )


def readable_size(path: Path, folder: Path) -> int:
    """Size of a file of weights below `folder`.

    Raises:
        InputError: it may not be read, or cannot be.
    """
    linked = folder
    for part in path.relative_to(folder).parts:
        linked = linked / part
        if linked.is_symlink() and not _is_hub_blob(linked, folder):
            raise InputError(
                f"{linked}: is a symbolic link, which could lead anywhere",
                "copy the file into the graph's folder",
            )
    try:
        with open_regular(path) as file:
            state = os.fstat(file.fileno())
    except OSError as error:
        raise InputError(
            f"{path}: cannot read: {error.strerror}", "the weights belong beside the graph"
        ) from error
    if state.st_nlink > 1 and stat.S_ISREG(state.st_mode) and not _holds_weights(path, folder):
        raise InputError(
            f"{path}: {state.st_nlink} names lead to this file, and it is not known to hold "
            "weights",
            f"copy it ({path.name}) to a file of its own",
        )
    return state.st_size


def _is_hub_blob(path: Path, folder: Path) -> bool:
    """Is it a link of the hub's cache, snapshots/COMMIT/NAME -> ../../blobs/HASH?"""
    target = path.resolve()
    blobs = folder.resolve().parent.parent / "blobs"
    return target.parent == blobs and HUB_BLOB.fullmatch(target.name) is not None


def _holds_weights(path: Path, folder: Path) -> bool:
    if path.suffix == ".safetensors":
        read_tensor_infos(
            path
        )  # refuses everything that is not one from the first byte to the last
        return True
    try:
        hashes = read_json_object(folder / MANIFEST).get("sha256")
    except InputError:
        return False
    name = path.relative_to(folder).as_posix()
    return isinstance(hashes, dict) and hashes.get(name) == sha256_file(path)
