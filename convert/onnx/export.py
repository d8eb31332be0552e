"""Export a checkpoint to a folder that ONNX Runtime and onnxruntime-genai load.

The graph is kilobytes: its weights are byte ranges of the checkpoint's own safetensors files, which
are hard-linked (or copied) beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...atomic import link_or_copy, output_folder
from ...errors import UsageError
from ..checkpoint import CONFIG, Checkpoint, open_folder
from ..manifest import Provenance, write_manifest
from ..materialize import place_side_files, write_float_checkpoint
from ..sources import INDEX, SafetensorsSource
from .contrib import Contrib, contrib_for
from .dialect import Dialect, GraphOptions
from .genai import genai_config
from .graph import GraphBuilder
from .names import GENAI_CONFIG, GRAPH_FILE
from .std17 import Std17
from .std24 import Std24
from .weights import DataFile, GraphWeights

DIALECTS: dict[str, type[Dialect]] = {d.name: d for d in (Contrib, Std24, Std17)}


@dataclass(frozen=True)
class ExportOptions:
    """`context_length` None: what the model was made for. `copy`: never hard-link."""

    dialect: str = "contrib"
    accuracy_level: int = 4
    context_length: int | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise UsageError(
                f"dialect: {self.dialect!r} is not known", f"choose {', '.join(DIALECTS)}"
            )
        if self.accuracy_level not in (0, 1, 2, 3, 4):
            raise UsageError(
                f"accuracy level: {self.accuracy_level} is not known",
                "4 multiplies in int8 (fast), 0 in float32 (exact)",
            )
        if self.context_length is not None and self.context_length < 1:
            raise UsageError(
                f"context length: {self.context_length} is not positive", "give a number of tokens"
            )


@dataclass(frozen=True)
class ExportResult:
    bytes_written: int
    bytes_linked: int
    files: tuple[str, ...]


def export_onnx(
    checkpoint: Checkpoint,
    options: ExportOptions,
    output: Path,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> ExportResult:
    """Write the ONNX artifact to the folder `output`.

    Args:
        advance: told the number of weights copied, when the source is no safetensors folder.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: the dialect cannot express something in this checkpoint.
    """
    with output_folder(output, overwrite) as folder:
        linked = _place_weights(checkpoint, folder, options.copy, advance)
        local = open_folder(folder)
        context = options.context_length or local.decoder.config.max_position_embeddings
        dialect = dialect_for(options.dialect, local)
        graph_options = GraphOptions(context, options.accuracy_level)
        _write_graph(local, dialect, graph_options, folder)
        content = genai_config(local, dialect, GRAPH_FILE, graph_options)
        _write_json(folder / GENAI_CONFIG, content)
        source = Provenance(checkpoint.origin.resolve().name, {})
        recipe = {key: value for key, value in vars(options).items() if key != "copy"}
        facts = {"parameters": local.parameter_count}
        write_manifest(folder, "onnx", source, recipe, facts)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        total = sum(path.stat().st_size for path in files)
        return ExportResult(total - linked, linked, tuple(path.name for path in files))


def _place_weights(
    checkpoint: Checkpoint, folder: Path, copy: bool, advance: Callable[[int], None]
) -> int:
    """Put config, tokenizer and weights into `folder` -> bytes that are links."""
    if not isinstance(checkpoint.source, SafetensorsSource):
        write_float_checkpoint(checkpoint, folder, advance)
        return 0
    linked = place_side_files(checkpoint, folder, copy)
    for path in checkpoint.source.files():
        copied = link_or_copy(path, folder / path.name, copy)
        linked += 0 if copied else path.stat().st_size
    index = checkpoint.origin / INDEX
    if index.exists():
        (folder / INDEX).write_bytes(index.read_bytes())
    _write_json(folder / CONFIG, dict(checkpoint.config))
    return linked


def dialect_for(name: str, checkpoint: Checkpoint) -> type[Dialect]:
    return contrib_for(checkpoint.decoder) if name == Contrib.name else DIALECTS[name]


def _write_graph(
    checkpoint: Checkpoint, dialect: type[Dialect], options: GraphOptions, folder: Path
) -> None:
    with DataFile(folder) as data:
        graph = build_graph(checkpoint, dialect, options, data)
    graph.save(folder / GRAPH_FILE)


def build_graph(
    checkpoint: Checkpoint, dialect: type[Dialect], options: GraphOptions, data: DataFile
) -> GraphBuilder:
    """The graph over the checkpoint's own files, and `data` for what it needs in another order."""
    graph = GraphBuilder(dialect.opsets, dialect.ir_version)
    dialect(checkpoint.decoder, graph, GraphWeights(checkpoint, graph, data), options).build()
    return graph


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
