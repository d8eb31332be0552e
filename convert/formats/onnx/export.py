"""Export a checkpoint to a folder that ONNX Runtime and onnxruntime-genai load.

The graph is kilobytes: its weights are byte ranges of the checkpoint's own safetensors files, which
are hard-linked (or copied) beside it. A dialect that wants them in another order has them in a file
of its own, and then of the checkpoint's only what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dsconv.atomic import bytes_to_copy, output_folder, require_space
from dsconv.convert.checkpoint.checkpoint import Checkpoint, generation_config
from dsconv.convert.checkpoint.manifest import Digests, hash_files, provenance_of, write_manifest
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.families.rope import DynamicScaling, Rope
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.json_file import write_json
from dsconv.convert.formats.float_copy import (
    planned_floats,
    write_float_checkpoint,
    write_whole_checkpoint,
)
from dsconv.errors import UnsupportedError, UsageError
from dsconv.progress import Advance

from .dialects.contrib import Contrib, contrib_for
from .dialects.dialect import Dialect, GraphOptions
from .dialects.std17 import Std17
from .dialects.std17_nbits import Std17NBits
from .dialects.std21 import Std21
from .dialects.std24 import Std24
from .facts import facts_of
from .genai import genai_config
from .genai_search import search_settings
from .graph import GraphBuilder
from .graph_source import GraphSource, hash_initializers
from .names import DATA_FILE, FIXED_SHAPES, GENAI_CONFIG, GRAPH_FILE, NARROWEST_BITS, PREFILL_FILE
from .placing import narrowest_bits, place_weights
from .weights import DataFile, GraphWeights

DIALECTS: dict[str, type[Dialect]] = {d.name: d for d in (Contrib, Std24, Std21, Std17, Std17NBits)}
PRECISIONS = ("float32", "float16")
# With fixed shapes every step looks at the whole cache, so the model's own length is no default.
FIXED_CONTEXT = 2048


@dataclass(frozen=True)
class ExportOptions:
    """How to write a graph; what the fields mean to it stands at `GraphOptions`.

    Attributes:
        context_length: None is what the model was made for, or FIXED_CONTEXT if that is less.
        prefill_length: all shapes fixed; tokens per run of the prompt, beside a graph for one.
        copy: never hard-link.
        target: what the options were chosen for; only noted.
    """

    dialect: str = "contrib"
    accuracy_level: int = 4
    context_length: int | None = None
    copy: bool = False
    precision: str = "float32"
    prefill_length: int | None = None
    rotary_tables: bool = False
    packed_embedding: bool = True
    bfloat16: bool = True
    explicit_zero_points: bool = False
    fused_products: bool = True
    target: str = "cpu"

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
        for name, value in (("context", self.context_length), ("prefill", self.prefill_length)):
            if value is not None and value < 1:
                raise UsageError(
                    f"{name} length: {value} is not positive", "use a number of tokens"
                )
        self._check_dialect()

    def _check_dialect(self) -> None:
        dialect = DIALECTS[self.dialect]
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision: {self.precision!r} is not known", f"choose {', '.join(PRECISIONS)}"
            )
        if self.precision not in dialect.precisions:
            able = ", ".join(d.name for d in DIALECTS.values() if self.precision in d.precisions)
            raise UnsupportedError(
                f"dialect {self.dialect} is not written in {self.precision}", f"choose {able}"
            )
        if self.prefill_length is not None and not dialect.allows_fixed_shapes:
            able = ", ".join(d.name for d in DIALECTS.values() if d.allows_fixed_shapes)
            raise UnsupportedError(
                f"dialect {self.dialect} is not written with fixed shapes", f"choose {able}"
            )

    def graph_options(self, longest: int) -> GraphOptions:
        """For a model of `longest` positions; sequence_length is left open."""
        default = longest if self.prefill_length is None else min(longest, FIXED_CONTEXT)
        return GraphOptions(
            self.context_length or default,
            self.accuracy_level,
            self.precision,
            None,
            self.rotary_tables or self.prefill_length is not None,
            self.packed_embedding,
            self.bfloat16,
            self.explicit_zero_points,
            self.fused_products,
        )


@dataclass(frozen=True)
class ExportResult:
    bytes_written: int
    bytes_linked: int
    files: tuple[str, ...]
    notes: tuple[str, ...] | None = None


def export_onnx(
    checkpoint: Checkpoint,
    options: ExportOptions,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
    check: Callable[[Path], None] = lambda folder: None,
) -> ExportResult:
    """Write the ONNX artifact to the folder `output`.

    Args:
        advance: told the number of weights copied, when the source is no safetensors folder.
        check: looks at the finished folder before it stands under its name; raises to refuse it.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: the dialect cannot express something in this checkpoint.
    """
    require_space(output, _bytes_of_weights(checkpoint, output, options.copy))
    with output_folder(output, overwrite) as folder:
        weights = checkpoint
        if isinstance(checkpoint.source, GraphSource):
            weights = write_whole_checkpoint(checkpoint, folder)
        elif not _can_be_linked(checkpoint):
            weights = write_float_checkpoint(checkpoint, folder, advance)
        dialect = dialect_for(options.dialect, weights)
        graph_options = options.graph_options(weights.decoder.config.max_position_embeddings)
        _refuse_beyond(weights.decoder.config.rope, graph_options.context_length)
        wanted = _graphs(options, graph_options)
        with DataFile(folder) as data:
            graphs = {
                name: build_graph(weights, dialect, each, data) for name, each in wanted.items()
            }
        local, linked = place_weights(weights, graphs.values(), data.names, folder, options.copy)
        graph_facts = facts_of(checkpoint, dialect.name)
        for name, graph in graphs.items():
            graph.save(folder / name, graph_facts)
        if options.prefill_length is None:
            content = genai_config(local, dialect, GRAPH_FILE, graph_options, options.target)
            write_json(folder / GENAI_CONFIG, content)
        else:
            write_json(folder / FIXED_SHAPES, _fixed_shapes(graph_options.context_length, wanted))
        check(folder)
        hashes = FileHashes()
        source = provenance_of(checkpoint, hashes)
        recipe = {key: value for key, value in vars(options).items() if key != "copy"}
        facts: dict[str, object] = {"parameters": local.parameter_count}
        if local.quantization is None and checkpoint.quantization is not None:
            facts[NARROWEST_BITS] = narrowest_bits(checkpoint)
        own = {DATA_FILE: hash_initializers(folder)} if data.names else {}
        digests = Digests(hash_files(folder, hashes), own)
        write_manifest(folder, "onnx", source, recipe, facts, digests)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        total = sum(path.stat().st_size for path in files)
        names = tuple(path.name for path in files)
        notes: tuple[str, ...] = ()
        if options.prefill_length is None:
            _, notes = search_settings(generation_config(local.side_files, local.config))
        return ExportResult(total - linked, linked, names, notes or None)


def _refuse_beyond(rope: Rope, context_length: int) -> None:
    scaling = rope.scaling
    if isinstance(scaling, DynamicScaling) and context_length > scaling.positions:
        raise UnsupportedError(
            f"context {context_length}: rope_type dynamic scales beyond {scaling.positions} "
            "positions, which no graph computes",
            f"use --context-length {scaling.positions} or less",
        )


def _bytes_of_weights(checkpoint: Checkpoint, output: Path, copy: bool) -> int:
    """That `_place_weights` will write."""
    if _can_be_linked(checkpoint):
        return bytes_to_copy(checkpoint.source.files(), output, copy)
    source = checkpoint.source
    if isinstance(source, GraphSource):
        return sum(source.nbytes(name) for name in source.names())
    return sum(tensor.nbytes for tensor in planned_floats(checkpoint))


def _can_be_linked(checkpoint: Checkpoint) -> bool:
    """A graph names byte ranges of safetensors, of types that its operators take."""
    source = checkpoint.source
    return isinstance(source, SafetensorsSource) and not any(
        source.dtype(name) == "F64" for name in checkpoint.parameters if not checkpoint.scheme(name)
    )


def dialect_for(name: str, checkpoint: Checkpoint) -> type[Dialect]:
    return contrib_for(checkpoint.decoder) if name == Contrib.name else DIALECTS[name]


def _graphs(options: ExportOptions, of_graph: GraphOptions) -> dict[str, GraphOptions]:
    """By file name: one graph, or with fixed shapes one per sequence length."""
    if options.prefill_length is None:
        return {GRAPH_FILE: of_graph}
    lengths = fixed_lengths(of_graph, options.prefill_length)
    return {name: replace(of_graph, sequence_length=n) for name, n in lengths.items()}


def _fixed_shapes(context_length: int, graphs: Mapping[str, GraphOptions]) -> dict[str, object]:
    """The file that names graphs of fixed shapes for our session."""
    return {
        "context_length": context_length,
        "graphs": [
            {"filename": name, "sequence_length": each.sequence_length}
            for name, each in graphs.items()
        ],
    }


def fixed_lengths(options: GraphOptions, prefill_length: int) -> dict[str, int]:
    """Graphs of fixed shapes: file name -> tokens of a pass."""
    lengths = {GRAPH_FILE: 1}
    if prefill_length > 1:
        lengths[PREFILL_FILE] = min(prefill_length, options.context_length)
    return lengths


def build_graph(
    checkpoint: Checkpoint, dialect: type[Dialect], options: GraphOptions, data: DataFile
) -> GraphBuilder:
    """The graph over the checkpoint's own files, and `data` for what it needs in another order."""
    graph = GraphBuilder(dialect.opsets, dialect.ir_version)
    dialect(checkpoint.decoder, graph, GraphWeights(checkpoint, graph, data), options).build()
    return graph
