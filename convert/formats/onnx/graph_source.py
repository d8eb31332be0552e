"""The weights of a folder whose graph has most of them in another order: read from there.

Such a folder carries no second copy as a checkpoint. Whoever opens it as one gets what is left of
its safetensors, and the rest from the file of the graph (`graph_tensors.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import CONFIG, module_of
from dsconv.convert.checkpoint.matrix_layout import SHAPE
from dsconv.convert.checkpoint.quantization_config import (
    QuantizationConfig,
    read_quantization_config,
)
from dsconv.convert.checkpoint.tensors import (
    SafetensorsSource,
    file_names,
    open_safetensors_folder,
)
from dsconv.convert.checkpoint.weight_files import SUFFIX
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import parameters_of
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.safetensors import TensorInfo
from dsconv.quant.schemes import Scheme

from .external_data import check_external_data, external_range, read_model
from .graph_tensors import Codes, Derived, Float, Scales, Shape, Stored, ZeroPoints
from .names import DATA_FILE, FIXED_SHAPES, GENAI_CONFIG, GRAPH_FILE

QUANTIZATION = "quantization_config"
HASHED_BYTES = 1 << 22  # read at a time
# By the number of an element type in onnx.TensorProto.DataType: the types of the graph's own file.
KINDS = {1: "F32", 2: "U8", 3: "I8", 10: "F16", 21: "UINT4", 22: "INT4"}
# What `weights.py` and the dialects call a parameter's copies in that file.
CODES, SCALES, ZEROS = "_codes", "_scales", "_zeros"
TRANSPOSED, ROWS, VECTOR = ":F16:transposed", ":F16", ":F32"


class GraphSource:
    """What is left of safetensors, and what a graph has besides.

    infos: of the former. quantization: how the matrices of both are quantized.
    """

    def __init__(
        self,
        kept: SafetensorsSource,
        derived: Mapping[str, Derived],
        quantization: QuantizationConfig | None,
    ) -> None:
        self.infos, self.quantization = kept.infos, quantization
        self._kept, self._derived = kept, derived

    def names(self) -> Iterable[str]:
        return (*self.infos, *self._derived)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner(name).shape

    def dtype(self, name: str) -> str:
        return self._owner(name).dtype

    def storage(self, name: str) -> str:
        return self._owner(name).dtype

    def nbytes(self, name: str) -> int:
        return self._owner(name).nbytes

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        found = self._derived.get(name)
        if found is None:
            return self._kept.rows(name, start, stop)
        return found.rows(start, found.shape[0] if stop is None else stop)

    def files(self) -> list[Path]:
        """The graph too: it says where in its file everything lies."""
        stored = {path for found in self._derived.values() for path in _paths(found)}
        graphs = {path.with_name(GRAPH_FILE) for path in stored}
        return sorted({*self._kept.files(), *stored, *graphs})

    def _owner(self, name: str) -> TensorInfo | Derived:
        found = self._derived.get(name)
        return self.infos[name] if found is None else found


def _paths(found: Derived) -> list[Path]:
    stored = getattr(found, "_stored", None)
    return [stored.path] if isinstance(stored, Stored) else []


def is_graph_folder(folder: Path) -> bool:
    names = (GENAI_CONFIG, FIXED_SHAPES)
    has_graph = any((folder / name).is_file() for name in names)
    return has_graph and (folder / GRAPH_FILE).is_file() and (folder / DATA_FILE).is_file()


def open_graph_weights(
    folder: Path, config: Mapping[str, Any], decoder: Decoder
) -> GraphSource | None:
    """The weights of a folder whose graph has some that its safetensors lack; else None.

    Raises:
        InputError, UnsupportedError: the graph or its file is damaged.
    """
    if not is_graph_folder(folder):
        return None
    kept = SafetensorsSource({})
    if any(name.endswith(SUFFIX) for name in file_names(folder)):
        kept = open_safetensors_folder(folder).source
    present = {parameter_of(name) for name in kept.names()}
    missing = {p.name for p in parameters_of(decoder)} - present
    if not missing:
        return None
    reader = ConfigReader(config, str(folder / CONFIG)).child(QUANTIZATION)
    quantization = read_quantization_config(reader) if reader is not None else None
    derived: dict[str, Derived] = {}
    found = initializers(folder / GRAPH_FILE)
    head = f"{decoder.head_linear.name}.weight"
    own_head = {head} if head not in present and is_in_graph(head, found) else set()
    for name in sorted(missing | own_head):
        is_table = module_of(name) == decoder.table.name
        kind = "Embedding" if is_table else "Linear"
        scheme = quantization.scheme_for(module_of(name), kind) if quantization else None
        derived |= _tensors_of(name, found, scheme)
    return GraphSource(kept, derived, quantization) if derived else None


def _tensors_of(
    name: str, found: Mapping[str, Stored], scheme: Scheme | None
) -> dict[str, Derived]:
    """A parameter's tensors, as a checkpoint has them; none where the graph lacks it."""
    codes, scales = found.get(f"{name}{CODES}"), found.get(f"{name}{SCALES}")
    if codes is not None and scales is not None and scheme is not None:
        tensors: dict[str, Derived] = {
            f"{name}_packed": Codes(codes, scheme),
            f"{name}_scale": Scales(scales, scheme),
            f"{module_of(name)}.{SHAPE}": Shape(*codes.shape[::-1]),
        }
        zeros = found.get(f"{name}{ZEROS}")
        if not scheme.symmetric and zeros is not None:
            tensors[f"{name}_zero_point"] = ZeroPoints(zeros, scheme)
        return tensors
    for ending in (ROWS, TRANSPOSED, VECTOR):
        stored = found.get(f"{name}{ending}")
        if stored is not None:
            return {name: Float(stored, ending == TRANSPOSED)}
    return {}


def initializers(path: Path) -> dict[str, Stored]:
    """Those of a graph that lie in its own file.

    Raises:
        InputError: the graph or that file is damaged.
    """
    model = read_model(path)
    check_external_data(path, model)
    found = {}
    for tensor in model.graph.initializer:
        place = external_range(tensor, path)
        kind = KINDS.get(tensor.data_type)
        if place is not None and kind is not None and place.path.name == DATA_FILE:
            found[tensor.name] = Stored(kind, tuple(tensor.dims), place.path, place.offset)
    return found


def hash_initializers(folder: Path) -> dict[str, str]:
    """Name -> sha256 of its bytes."""
    found = initializers(folder / GRAPH_FILE)
    with (folder / DATA_FILE).open("rb") as file:
        return {name: _sha256(file, stored) for name, stored in sorted(found.items())}


def _sha256(file: BinaryIO, stored: Stored) -> str:
    digest, left = hashlib.sha256(), stored.nbytes
    file.seek(stored.offset)
    while left > 0:
        piece = file.read(min(left, HASHED_BYTES))
        digest.update(piece)
        left -= len(piece) or left
    return digest.hexdigest()


def parameter_of(stored: str) -> str:
    """The parameter that a tensor of a checkpoint belongs to: `a.weight_packed` -> `a.weight`."""
    module, _, kind = stored.rpartition(".")
    return f"{module}.weight" if kind.startswith("weight_") else stored


def is_in_graph(name: str, written: Iterable[str]) -> bool:
    """Could `open_graph_weights` give the parameter back from tensors of these names?"""
    known = set(written)
    endings = (ROWS, TRANSPOSED, VECTOR)
    return {f"{name}{CODES}", f"{name}{SCALES}"} <= known or any(
        f"{name}{ending}" in known for ending in endings
    )
