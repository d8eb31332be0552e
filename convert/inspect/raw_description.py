"""Files that dsconv can do nothing with, shown as far as they say what they are.

A GGUF file of another architecture, a safetensors file without its folder, an adapter, a graph of
somebody else, a folder without config.json. Only headers are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import open_side_files
from dsconv.convert.checkpoint.weight_files import ADAPTER_CONFIG
from dsconv.convert.checkpoint.weight_files import SUFFIX as SAFETENSORS
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.files.local_files import open_regular
from dsconv.convert.files.safetensors import read_tensor_infos
from dsconv.convert.formats.gguf.container import read_header
from dsconv.convert.formats.onnx.external_data import BITS, read_model, tensors_of
from dsconv.convert.inspect.gguf_facts import gguf_facts
from dsconv.errors import DsconvError

from .description import Description, Problem, TensorRow
from .model_facts import origin, sampling, text_facts

GRAPH = ".onnx"
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
BASE_MODEL = "base_model_name_or_path"
PACKED = "some tensors hold several numbers in one, so that parameters are not counted"


def describe_raw(path: Path, error: DsconvError) -> Description | None:
    """What the headers of a file or folder say; None where there are none to read.

    Args:
        error: why it does not open as a model.
    """
    problem = Problem(error.message, error.hint)
    with suppress(DsconvError, OSError):
        if os.path.isdir(path):
            return _folder(path, problem)
        if path.suffix == GRAPH:
            return _graphs([path], path, problem)
        with open_regular(path) as file:
            magic = file.read(9)
        if magic.startswith(b"GGUF"):
            return _gguf(path, problem)
        if magic[8:] == b"{":
            rows = [_row(info) for info in read_tensor_infos(path).values()]
            return _described("safetensors", rows, problem, path)
    return None


def _gguf(path: Path, problem: Problem) -> Description:
    metadata, tensors = read_header(path)
    facts = gguf_facts(path, metadata, tensors)
    rows = tuple(TensorRow(t.name, t.shape, t.type_name, t.nbytes) for t in tensors.values())
    size = sum(row.size_bytes for row in rows)
    parameters = sum(math.prod(row.shape) for row in rows)
    return Description(
        *("gguf", facts.family, parameters, size, rows, ()),
        *(facts.architecture, facts.text, {}, facts.origin, problem),
    )


def _folder(path: Path, problem: Problem) -> Description | None:
    names = sorted(os.listdir(path))
    rows = list(_rows_of(path / name for name in names if name.endswith(SAFETENSORS)))
    if rows:
        if ADAPTER_CONFIG in names:
            return _described("adapter", rows, problem, path, _adapter_notes(path))
        return _described("safetensors", rows, problem, path)
    graphs = [path / name for name in names if name.endswith(GRAPH)]
    return _graphs(graphs, path, problem) if graphs else None


def _adapter_notes(folder: Path) -> tuple[str, ...]:
    with suppress(DsconvError):
        config = read_json_object(folder / ADAPTER_CONFIG)
        facts = {key: config.get(key) for key in ("peft_type", BASE_MODEL, "r", "lora_alpha")}
        shown = (f"{key} {value}" for key, value in facts.items() if value is not None)
        return (f"{ADAPTER_CONFIG}: {', '.join(shown)}",)
    return ()


def _rows_of(files: Iterable[Path]) -> Iterator[TensorRow]:
    """Of all files; a name that comes again is shown with its file."""
    seen: set[str] = set()
    for file in files:
        for name, info in read_tensor_infos(file).items():
            row = _row(info)
            if name in seen:
                yield TensorRow(f"{file.name}: {name}", row.shape, row.storage, row.size_bytes)
            else:
                seen.add(name)
                yield row


def _row(info: Any) -> TensorRow:
    return TensorRow(info.name, info.shape, info.dtype, info.nbytes)


def _described(
    kind: str,
    rows: list[TensorRow],
    problem: Problem,
    place: Path,
    notes: tuple[str, ...] = (),
) -> Description:
    is_plain = all(row.storage in FLOATS for row in rows)
    side_files = open_side_files(place) if os.path.isdir(place) else {}
    return Description(
        kind,
        "unknown",
        sum(math.prod(row.shape) for row in rows) if is_plain else 0,
        sum(row.size_bytes for row in rows),
        tuple(rows),
        notes if is_plain else (*notes, PACKED),
        None,
        text_facts(side_files, {}),
        sampling(side_files),
        origin(place, {}),
        problem,
    )


# ---------------------------------------------------------------- graphs


def _graphs(files: list[Path], place: Path, problem: Problem) -> Description:
    from onnx import TensorProto

    rows: list[TensorRow] = []
    notes: list[str] = []
    for file in files:
        model = read_model(file)
        opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
        producer = " ".join((model.producer_name, model.producer_version)).strip() or "unknown"
        notes.append(f"{file.name}: {len(model.graph.node)} nodes, {opsets}, made by {producer}")
        notes += [f"{file.name}: {entry.key}: {entry.value}" for entry in model.metadata_props]
        prefix = f"{file.name}: " if len(files) > 1 else ""
        for tensor in tensors_of(model.graph):
            kind, shape = tensor.data_type, tuple(tensor.dims)
            size = -(-math.prod(shape) * BITS.get(kind, 0) // 8)
            known = kind in TensorProto.DataType.values()
            storage = TensorProto.DataType.Name(kind) if known else f"number {kind}"
            rows.append(TensorRow(f"{prefix}{tensor.name}", shape, storage, size))
    size = sum(row.size_bytes for row in rows)
    return Description(
        *("onnx", "unknown", 0, size, tuple(rows), (*notes, PACKED), None, None, {}),
        *(origin(place, {}), problem),
    )
