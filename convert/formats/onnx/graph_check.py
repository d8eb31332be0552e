"""Is an exported graph the one that its folder's config.json and weights give?

The graph is built once more, into nothing, and compared with the file: nodes, attributes,
constants, which bytes of which file every weight is, and the bytes that were written in another
order. So an operator that another theta, epsilon or head count has crept into is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dsconv.atomic import MANIFEST
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Decoder
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.local_files import safe_join
from dsconv.errors import DsconvError, InputError

from .dialects.dialect import Dialect, GraphOptions
from .export import ExportOptions, build_graph, dialect_for, fixed_lengths
from .external_data import read_model
from .genai import genai_config
from .graph import MICROSOFT
from .graph_source import GraphSource, hash_initializers
from .names import DATA_FILE, FIXED_SHAPES, GENAI_CONFIG
from .weights import DataFile

# What a user may set in genai_config.json without changing the model.
NODE_FACTS = ("operator", "inputs", "outputs")
FREE_KEYS = ("session_options", "pad_token_id")


@dataclass(frozen=True)
class Difference:
    """place: a tensor, or a node and its layer; message: what is there and what should be."""

    place: str
    message: str


def check_graph(folder: Path, checkpoint: Checkpoint) -> list[Difference]:
    """Compare an ONNX artifact with its own checkpoint (`open_folder` of the same folder).

    Raises:
        InputError: a graph cannot be read, or is in no dialect that is known here.
    """
    recorded = _recorded_options(folder)
    return [*_check(folder, checkpoint, recorded), *_changed_tensors(folder, checkpoint)]


def _changed_tensors(folder: Path, checkpoint: Checkpoint) -> Iterator[Difference]:
    """Of a folder whose weights are the graph's own: only the manifest knows what they were."""
    if not isinstance(checkpoint.source, GraphSource):
        return
    try:
        written = read_json_object(folder / MANIFEST).get("tensors")
    except DsconvError:
        return
    hashes = written.get(DATA_FILE) if isinstance(written, dict) else None
    if isinstance(hashes, dict):
        for name, digest in hash_initializers(folder).items():
            if hashes.get(name) != digest:
                yield Difference(name, f"its bytes in {DATA_FILE} are not what was written")


def _check(
    folder: Path, checkpoint: Checkpoint, recorded: ExportOptions | None
) -> list[Difference]:
    if (folder / FIXED_SHAPES).is_file():
        return _check_fixed(folder, checkpoint, recorded or ExportOptions())
    reader = ConfigReader(read_json_object(folder / GENAI_CONFIG), GENAI_CONFIG)
    model = reader.child("model")
    decoder = model.child("decoder") if model else None
    if model is None or decoder is None:
        raise reader.fail("model.decoder", "missing")
    graph_file = decoder.string("filename")
    found = _load(folder, graph_file)
    dialect = dialect_for(recorded.dialect, checkpoint) if recorded else None
    session = decoder.child("session_options")
    level = session.data.get("session.qdq_matmulnbits_accuracy_level", "4") if session else "4"
    length = model.integer("context_length")
    options = (recorded or ExportOptions()).graph_options(length)
    options = replace(options, context_length=length, accuracy_level=int(str(level)))
    dialect = dialect or _dialect_of(found, checkpoint)
    differences = _check_file(folder, found, checkpoint, dialect, options)
    content = genai_config(checkpoint, dialect, graph_file, options)["model"]
    differences += _compare_genai(model.data, content, "model")
    return differences


def _check_fixed(folder: Path, checkpoint: Checkpoint, recorded: ExportOptions) -> list[Difference]:
    """Graphs of fixed shapes: one per sequence length, in the order in which they share weights."""
    content = read_json_object(folder / FIXED_SHAPES)
    options = recorded.graph_options(checkpoint.decoder.config.max_position_embeddings)
    lengths = fixed_lengths(options, recorded.prefill_length or 1)
    expected = {
        "context_length": options.context_length,
        "graphs": [{"filename": name, "sequence_length": n} for name, n in lengths.items()],
    }
    differences = [*_compare_genai(content, expected, FIXED_SHAPES)]
    dialect = dialect_for(recorded.dialect, checkpoint)
    data = _ComparedData(folder)
    with data:
        for name, length in lengths.items():
            of_length = replace(options, sequence_length=length)
            model = build_graph(checkpoint, dialect, of_length, data).model()
            differences += _compare(_load(folder, name).graph, model.graph, checkpoint)
    return [*differences, *data.differences(model.graph)]


def _check_file(
    folder: Path,
    found: ir.Model,
    checkpoint: Checkpoint,
    dialect: type[Dialect],
    options: GraphOptions,
) -> list[Difference]:
    data = _ComparedData(folder)
    with data:
        expected = build_graph(checkpoint, dialect, options, data).model()
    return [
        *_compare(found.graph, expected.graph, checkpoint),
        *data.differences(expected.graph),
    ]


def _recorded_options(folder: Path) -> ExportOptions | None:
    """How the export was asked for; None where the manifest does not tell."""
    try:
        recipe = read_json_object(folder / MANIFEST).get("recipe")
        known = {field.name for field in fields(ExportOptions)}
        if not isinstance(recipe, dict) or not recipe.keys() <= known:
            return None
        return ExportOptions(**recipe)
    except (DsconvError, TypeError):
        return None


def _load(folder: Path, name: str) -> ir.Model:
    path = safe_join(folder, name, GENAI_CONFIG)
    proto = read_model(path)
    if proto.functions:
        raise InputError(f"{path}: redefines operators by functions of its own", "export it again")
    try:
        model: ir.Model = ir.from_proto(proto)
        return model
    except Exception as error:  # the library promises no class
        raise InputError(f"{path}: cannot read: {error}", "export it again") from error


def _dialect_of(model: ir.Model, checkpoint: Checkpoint) -> type[Dialect]:
    opsets = model.graph.opset_imports
    name = "contrib" if MICROSOFT in opsets else "std24" if opsets.get("", 0) >= 23 else "std17"
    return dialect_for(name, checkpoint)


class _ComparedData(DataFile):
    """Reads what the graph's own data file should hold, and keeps where it does not."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._wrong: list[int] = []

    def _write(self, pieces: Iterator[NDArray[Any]]) -> tuple[int, int]:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except OSError as error:
                raise InputError(
                    f"{self._path}: cannot read: {error.strerror}", "export it again"
                ) from error
        start = self.size + -self.size % 64
        self.size = start
        self._file.seek(start)
        is_equal = True
        for piece in pieces:
            content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            is_equal = self._file.read(len(content)) == content and is_equal
            self.size += len(content)
        if not is_equal:
            self._wrong.append(start)
        return start, self.size - start

    def differences(self, expected: ir.Graph) -> list[Difference]:
        names = {
            tensor.offset: name
            for name, tensor in _tensors(expected).items()
            if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) == DATA_FILE
        }
        message = f"its bytes in {DATA_FILE} are not the checkpoint's"
        return [Difference(names[offset], message) for offset in self._wrong]


def _tensors(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    values = graph.initializers.items()
    return {name: value.const_value for name, value in values if value.const_value is not None}


def _compare(found: ir.Graph, expected: ir.Graph, checkpoint: Checkpoint) -> Iterator[Difference]:
    frequencies = checkpoint.decoder.config.rope.frequencies().tobytes()
    for difference in _compare_tensors(_tensors(found), _tensors(expected)):
        tensor = _tensors(expected).get(difference.place)
        if tensor is not None and not _is_external(tensor) and tensor.tobytes() == frequencies:
            difference = Difference(f"rotary frequencies ({difference.place})", difference.message)
        yield difference
    if dict(found.opset_imports) != dict(expected.opset_imports):
        versions = f"{dict(found.opset_imports)}, expected {dict(expected.opset_imports)}"
        yield Difference("graph", f"operators of versions {versions}")
    present = {node.name: node for node in found}
    if len(present) != len(found):
        yield Difference("graph", f"{len(found)} nodes of {len(present)} names")
    wanted = {node.name: node for node in expected}
    layer = ""
    for name, node in wanted.items():
        layer = _layer_of(node, checkpoint.decoder) or layer
        place = f"{name} ({layer or 'model'})"
        if name not in present:
            yield Difference(place, "the graph lacks this node")
            continue
        left, right = _facts(present[name]), _facts(node)
        for key in sorted({*left, *right}):
            if left.get(key) != right.get(key):
                what = f"{key} is {_shown(left.get(key))}, expected {_shown(right.get(key))}"
                yield Difference(place, what)
    for name in present.keys() - wanted.keys():
        yield Difference(str(name), "a node that does not belong there")
    for what in ("inputs", "outputs"):
        left_values = [_value(value) for value in getattr(found, what)]
        if left_values != [_value(value) for value in getattr(expected, what)]:
            yield Difference(f"graph {what}", "not those that were exported")


def _value(value: ir.Value) -> tuple[str | None, str, str]:
    return value.name, str(value.type), str(value.shape)


def _layer_of(node: ir.Node, decoder: Decoder) -> str:
    names = [node.name or "", *(value.name or "" for value in node.inputs if value is not None)]
    layer = re.compile(rf"(?:{re.escape(decoder.layers_name)}|past_key_values)\.(\d+)\.")
    found = next((match for name in names if (match := layer.search(name))), None)
    return decoder.layer_name(int(found[1])) if found else ""


def _facts(node: ir.Node) -> dict[str, object]:
    """All that decides what a node computes. Constants are named alike where they are equal."""
    facts: dict[str, object] = {
        "operator": f"{node.domain}.{node.op_type}",
        "inputs": [(value.name or "") if value is not None else "" for value in node.inputs],
        "outputs": [value.name or "" for value in node.outputs],
    }
    for attribute in node.attributes.values():
        value = attribute.value
        if isinstance(value, float):  # stored in single precision
            value = float(np.float32(value))
        name = f"attribute {attribute.name}" if attribute.name in NODE_FACTS else attribute.name
        facts[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return facts


def _is_external(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _compare_tensors(
    found: dict[str, ir.TensorProtocol], expected: dict[str, ir.TensorProtocol]
) -> Iterator[Difference]:
    for name, right in expected.items():
        left = found.get(name)
        if left is None:
            yield Difference(name, "the graph lacks this weight or constant")
        elif _is_external(left) != _is_external(right) or left.dtype != right.dtype:
            yield Difference(name, f"is {left.dtype}, expected {right.dtype} of a file")
        elif isinstance(left, ir.ExternalTensor) and isinstance(right, ir.ExternalTensor):
            here, there = _range(left), _range(right)
            if here != there:
                yield Difference(name, f"is {here}, expected {there}")
        elif _stored_bytes(left) != right.tobytes() or list(left.shape) != list(right.shape):
            values = f"{_first_values(left)}, expected {_first_values(right)}"
            yield Difference(name, f"begins with {values}")
    for name in found.keys() - expected.keys():
        yield Difference(name, "a weight or constant that does not belong there")


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a tensor that cannot show its values
        return f"a broken {type(value).__name__}"


def _stored_bytes(tensor: ir.TensorProtocol) -> bytes | None:
    """None where the bytes do not fit type and shape."""
    try:
        return tensor.tobytes()
    except Exception:  # the library promises no class
        return None


def _first_values(tensor: ir.TensorProtocol) -> str:
    try:
        return str(tensor.numpy().ravel()[:4])
    except Exception:  # the library promises no class
        return "bytes that do not fit its type and shape"


def _range(tensor: ir.ExternalTensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor.location} from byte {tensor.offset}, {tensor.length} bytes as [{shape}]"


def _compare_genai(found: Any, expected: Any, where: str) -> Iterator[Difference]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected} - {*FREE_KEYS}):
            yield from _compare_genai(found.get(key), expected.get(key), f"{where}.{key}")
    elif found != expected:
        yield Difference(GENAI_CONFIG, f"{where} is {found!r}, expected {expected!r}")
