"""What a check needs to know of an ONNX graph: nodes, types, constants, sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dsconv.convert.files.local_files import open_regular
from dsconv.convert.formats.onnx.external_data import (
    ExternalRange,
    external_range,
    read_model,
    readable_size,
)
from dsconv.errors import InputError

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class GraphView:
    """One ONNX file."""

    path: Path
    model: Any  # onnx.ModelProto

    @cached_property
    def nodes(self) -> list[Any]:
        """All nodes, those of If and Loop bodies included."""
        return list(_nodes(self.model.graph))

    @cached_property
    def initializers(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def inputs(self) -> list[Any]:
        """Inputs that the caller feeds; old files list their weights among them."""
        return [x for x in self.model.graph.input if x.name not in self.initializers]

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 where the file imports none."""
        versions = [o.version for o in self.model.opset_import if o.domain in STANDARD_DOMAINS]
        return max(versions, default=0)

    @cached_property
    def producers(self) -> dict[str, Any]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def constants(self) -> set[str]:
        """Values known when the graph is loaded, which ONNX Runtime computes before any provider
        sees the graph. It leaves DequantizeLinear in place."""
        known = set(self.initializers)
        for node in self.nodes:
            if node.op_type == "Constant" or (
                node.op_type not in ("DequantizeLinear", "QuantizeLinear")
                and any(node.input)
                and all(name in known for name in node.input if name)
            ):
                known.update(node.output)
        return known

    def is_folded(self, node: Any) -> bool:
        return all(name in self.constants for name in node.output)

    @cached_property
    def _types(self) -> dict[str, Any]:
        """Type and shape of every value that is declared or can be inferred."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # a graph that onnx itself cannot follow; what is declared must do
            graph = self.model.graph
        values = (*graph.input, *graph.output, *graph.value_info)
        return {value.name: value.type.tensor_type for value in values}

    @cached_property
    def _elements(self) -> dict[str, str]:
        found = {name: _type_name(kind.elem_type) for name, kind in self._types.items()}
        weights = {name: _type_name(t.data_type) for name, t in self.initializers.items()}
        return found | weights

    def element(self, name: str) -> str | None:
        """FLOAT, FLOAT16, INT4, …; None where it is not known."""
        kind = self._elements.get(name)
        return None if kind == "UNDEFINED" else kind

    def rank(self, name: str) -> int | None:
        """Number of dimensions; None where it is not known."""
        kind = self._types.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def shape(self, value: Any) -> list[int | str]:
        """Of an input: numbers, and names (or `?`) of open dimensions."""
        dims = value.type.tensor_type.shape.dim
        return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]

    @cached_property
    def size_bytes(self) -> int:
        """The graph with all its weights inside."""
        places = (external_range(tensor, self.path) for tensor in self.initializers.values())
        outside = sum(place.length for place in places if place is not None)
        return int(self.model.ByteSize()) + outside

    @cached_property
    def users(self) -> dict[str, list[Any]]:
        """The nodes that take a value."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def constant_array(self, name: str) -> NDArray[Any] | None:
        """Values of an initializer; None where there is none, or its file is missing.

        Raises:
            InputError: its bytes do not fit its shape, or lie where they may not.
        """
        tensor = self.initializers.get(name)
        if tensor is None:
            return None
        place = external_range(tensor, self.path)
        if place is not None:
            return _external_array(place, self.path.parent)
        try:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # the library promises no class
            raise InputError(
                f"{self.path}: tensor {name!r}: {error}", "export the graph again"
            ) from error


def _external_array(place: ExternalRange, folder: Path) -> NDArray[Any] | None:
    """Raw bytes of a tensor beside the graph (4-bit values stay packed)."""
    if not os.path.lexists(place.path) or place.length <= 0:
        return None
    if readable_size(place.path, folder) < place.offset + place.length:
        return None
    with open_regular(place.path) as file:
        file.seek(place.offset)
        return np.frombuffer(file.read(place.length), np.uint8)


def open_graph_view(path: Path) -> GraphView:
    """Read a graph without its external weights.

    Raises:
        InputError: it is missing, no ONNX file, or what its weights say of themselves is wrong.
    """
    view = GraphView(path, read_model(path))
    for tensor in view.initializers.values():
        external_range(tensor, path)
    return view


def attribute(node: Any, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def input_of(node: Any, index: int) -> str:
    """Name of an input, "" where it is left out."""
    return str(node.input[index]) if index < len(node.input) else ""


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for body in (*([item.g] if item.HasField("g") else []), *item.graphs):
                yield from _nodes(body)


def _type_name(number: int) -> str:
    known = onnx.TensorProto.DataType
    return str(known.Name(number)) if number in known.values() else f"TYPE {number}"
