"""The weights beside a graph: the checkpoint's own files, or of them what the graph reads.

Where a graph has all its matrices in another order, the checkpoint's files would be a second copy
that nobody reads: then one file holds what is left (`graph_source.py` opens such a folder).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from dsconv.atomic import link_or_copy
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.checkpoint.weight_files import INDEX
from dsconv.convert.files.json_file import write_json
from dsconv.convert.files.safetensors import (
    PlannedTensor,
    SafetensorsWriter,
    TensorInfo,
    read_tensor_infos,
)
from dsconv.convert.formats.float_copy import WEIGHTS, place_side_files

from .graph import GraphBuilder
from .graph_source import CODES, QUANTIZATION, is_in_graph, parameter_of

LEAST_SHARE = 0.05  # of all weights: less than this is not worth a file of its own
PIECE_BYTES = 1 << 24


def place_weights(
    checkpoint: Checkpoint,
    graphs: Collection[GraphBuilder],
    written: Collection[str],
    folder: Path,
    copy: bool,
) -> tuple[Checkpoint, int]:
    """Put config, tokenizer and weights into `folder` -> the same there, bytes that are links.

    The graphs refer to files by name; where those change, the graphs are told.

    Args:
        written: names of what the graphs have in their own file.
    """
    source = checkpoint.source
    assert isinstance(source, SafetensorsSource)
    unread = _unread(checkpoint, source, graphs, frozenset(written))
    whole = sum(info.nbytes for info in source.infos.values())
    is_there = checkpoint.origin == folder
    linked = 0 if is_there else place_side_files(checkpoint, folder, copy)
    if sum(source.infos[name].nbytes for name in unread) < LEAST_SHARE * whole:
        return (checkpoint, 0) if is_there else _whole_files(checkpoint, folder, copy, linked)
    kept = {name: info for name, info in source.infos.items() if name not in unread}
    config, quantization = dict(checkpoint.config), checkpoint.quantization
    if not _quantized(checkpoint) & ({*map(parameter_of, kept)} | _as_codes(checkpoint, written)):
        config.pop(QUANTIZATION, None)  # its matrices are float16 from here on
        quantization = None
    infos = _write_kept(source, kept, folder, graphs)
    write_json(folder / CONFIG, config)
    local = replace(
        checkpoint,
        origin=folder,
        config=config,
        source=SafetensorsSource(infos),
        quantization=quantization,
    )
    return local, linked


def narrowest_bits(checkpoint: Checkpoint) -> float:
    """Bits per weight, scales included, of the matrix that is stored in the fewest."""
    found = []
    for name, parameter in checkpoint.parameters.items():
        if len(parameter.shape) != 2:
            continue
        scheme, (rows, columns) = checkpoint.scheme(name), parameter.shape
        names = [name]
        if scheme is not None:
            module = name.rpartition(".")[0]
            names = [tensor.name for tensor in stored_tensors(module, (rows, columns), scheme)]
        stored = sum(checkpoint.source.nbytes(each) for each in names)
        found.append(8 * stored / (rows * columns))
    return min(found)


def _quantized(checkpoint: Checkpoint) -> set[str]:
    return {name for name in checkpoint.parameters if checkpoint.scheme(name) is not None}


def _as_codes(checkpoint: Checkpoint, written: Collection[str]) -> set[str]:
    """Parameters whose codes a graph has in its own file."""
    return {name for name in checkpoint.parameters if f"{name}{CODES}" in written}


def _unread(
    checkpoint: Checkpoint,
    source: SafetensorsSource,
    graphs: Collection[GraphBuilder],
    written: frozenset[str],
) -> set[str]:
    """Tensors that no graph reads, of parameters that can be had back from the graphs' own file.

    Quantized ones as float16 only where all of them are: config.json says which are quantized.
    """
    read = {parameter_of(name) for name in _read(source.infos, graphs)}
    gone = {name for name in checkpoint.parameters if is_in_graph(name, written)} - read
    quantized = _quantized(checkpoint)
    if not quantized <= gone - _as_codes(checkpoint, written):
        gone -= quantized - _as_codes(checkpoint, written)
    return {name for name in source.infos if parameter_of(name) in gone}


def _read(infos: Mapping[str, TensorInfo], graphs: Collection[GraphBuilder]) -> Iterator[str]:
    """Tensors that a graph refers to, alone or with those that follow."""
    places = sorted({place for graph in graphs for place in graph.places()})
    for name, info in infos.items():
        for location, offset, length in places:
            overlaps = offset < info.offset + info.nbytes and info.offset < offset + length
            if location == info.path.name and overlaps:
                yield name
                break


def _whole_files(
    checkpoint: Checkpoint, folder: Path, copy: bool, linked: int
) -> tuple[Checkpoint, int]:
    source = checkpoint.source
    assert isinstance(source, SafetensorsSource)
    for path in source.files():
        copied = link_or_copy(path, folder / path.name, copy)
        linked += 0 if copied else path.stat().st_size
    index = checkpoint.origin / INDEX
    if index.exists():
        (folder / INDEX).write_bytes(index.read_bytes())
    write_json(folder / CONFIG, dict(checkpoint.config))
    infos = {n: replace(info, path=folder / info.path.name) for n, info in source.infos.items()}
    return replace(checkpoint, origin=folder, source=SafetensorsSource(infos)), linked


def _write_kept(
    source: SafetensorsSource,
    kept: Mapping[str, TensorInfo],
    folder: Path,
    graphs: Collection[GraphBuilder],
) -> dict[str, TensorInfo]:
    """One file of tensors in the order in which they lay: what was adjacent stays so."""
    whole = [path for path in source.files() if path.parent == folder]
    order = sorted(kept, key=lambda name: (kept[name].path.name, kept[name].offset))
    infos: dict[str, TensorInfo] = {}
    if kept:
        partial = folder / f"{WEIGHTS}.kept"
        planned = [PlannedTensor(name, kept[name].dtype, kept[name].shape) for name in order]
        with SafetensorsWriter(partial, planned) as writer:
            for name in order:
                _copy(source, name, writer)
        infos = {
            name: replace(info, path=folder / WEIGHTS)
            for name, info in read_tensor_infos(partial).items()
        }
    for path in whole:
        path.unlink()
    if kept:
        partial.rename(folder / WEIGHTS)
    moved = {(kept[name].path.name, kept[name].offset): infos[name].offset for name in order}
    for graph in graphs:
        graph.relocate(WEIGHTS, moved)
    return infos


def _copy(source: SafetensorsSource, name: str, writer: SafetensorsWriter) -> None:
    info = source.infos[name]
    rows = info.shape[0] if info.shape else 1
    step = max(1, PIECE_BYTES // max(1, info.nbytes // max(1, rows)))
    for start in range(0, rows, step):
        writer.write(name, source.rows(name, start, min(rows, start + step)))
