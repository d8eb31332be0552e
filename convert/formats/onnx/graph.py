"""A small builder over onnx_ir: values are objects, weights are references into files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dsconv import __version__

MICROSOFT = "com.microsoft"

Value = ir.Value
Dimension = int | str

ELEMENT_TYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
    "INT4": ir.DataType.INT4,
    "UINT4": ir.DataType.UINT4,
}
FLOAT = ir.DataType.FLOAT
FLOAT16 = ir.DataType.FLOAT16
INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64


class GraphBuilder:
    """Nodes in order of creation; initializers are shared when their bytes are equal."""

    def __init__(self, opsets: dict[str, int], ir_version: int) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="decoder")
        self._ir_version = ir_version
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._references: dict[str, Value] = {}
        self._counts: dict[str, int] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dimension]) -> Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def output(
        self, value: Value, name: str, dtype: ir.DataType, shape: Sequence[Dimension]
    ) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)

    def nodes(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        outputs: int,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs."""
        if name is None:
            self._counts[operator] = self._counts.get(operator, 0) + 1
            name = f"{operator}_{self._counts[operator]}"
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}.{index}"
        self._graph.append(node)
        return list(node.outputs)

    def node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output."""
        return self.nodes(operator, inputs, 1, domain, name, **attributes)[0]

    def constant(self, array: NDArray[Any] | np.generic) -> Value:
        """A small constant, stored in the graph itself."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._register(ir.tensor(array, name=name))
        return self._constants[key]

    def integers(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    def reference(
        self, name: str, location: str, offset: int, nbytes: int, dtype: str, shape: Sequence[int]
    ) -> Value:
        """An initializer whose bytes lie at `offset` of the file `location` beside the graph."""
        if name not in self._references:
            tensor = ir.ExternalTensor(
                location, offset, nbytes, ELEMENT_TYPES[dtype], shape=ir.Shape(shape), name=name
            )
            self._references[name] = self._register(tensor)
        return self._references[name]

    def places(self) -> Iterator[tuple[str, int, int]]:
        """File, offset and bytes of every reference."""
        for tensor in self._external():
            yield str(tensor.location), tensor.offset or 0, tensor.length or 0

    def relocate(self, location: str, moved: Mapping[tuple[str, int], int]) -> None:
        """References to a place (file, offset) in `moved` now go to that offset of `location`."""
        for value, tensor in zip(self._references.values(), self._external(), strict=True):
            place = moved.get((str(tensor.location), tensor.offset or 0))
            if place is not None:
                value.const_value = ir.ExternalTensor(
                    location,
                    place,
                    tensor.length,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape),
                    name=tensor.name,
                )

    def _external(self) -> list[ir.ExternalTensor]:
        found = [value.const_value for value in self._references.values()]
        return [tensor for tensor in found if isinstance(tensor, ir.ExternalTensor)]

    def cast_between(self, value: Value, stored: str, wanted: str = "F32") -> Value:
        """Cast what is stored in another dtype; on initializers folded when the graph is loaded."""
        if stored == wanted:
            return value
        return self.node("Cast", [value], to=ELEMENT_TYPES[wanted].value)

    def model(self) -> ir.Model:
        return ir.Model(
            self._graph,
            ir_version=self._ir_version,
            producer_name="dsconv",
            producer_version=__version__,
        )

    def save(self, path: Path, facts: Mapping[str, str]) -> None:
        """facts: for people and tools that look at the file, as its `metadata_props`."""
        model = self.model()
        model.metadata_props.update(facts)
        ir.save(model, path)

    def _register(self, tensor: ir.TensorProtocol) -> Value:
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value
