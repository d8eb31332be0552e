"""Tiny graphs with known results: does a provider compute int4 and float16 matrices rightly?

Inputs have three dimensions as in our exports: some providers take no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.quant.packing import pack_rows

TOKENS, INPUTS, OUTPUTS, GROUP = 4, 64, 32, 32
# Providers round activations to int8 or compute in float16; a wrong layout is off by 1.
TOLERANCE = 2e-2


@dataclass(frozen=True)
class Trial:
    """A model (its bytes), an input and what must come out."""

    model: bytes
    x: NDArray[Any]
    expected: NDArray[np.float32]

    def error_of(self, found: NDArray[Any]) -> float:
        """Largest difference as a share of the largest expected value."""
        difference = np.abs(np.asarray(found, np.float32) - self.expected).max()
        return float(difference / np.abs(self.expected).max())


def int4_numbers() -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """-> codes [outputs, inputs], scales and zero points [outputs, groups]."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (OUTPUTS, INPUTS), np.uint8)
    scales = random.uniform(0.5, 1.5, (OUTPUTS, INPUTS // GROUP)).astype(np.float32)
    zeros = random.integers(6, 11, scales.shape, np.uint8)
    return codes, scales, zeros


def _dequantized() -> NDArray[np.float32]:
    codes, scales, zeros = int4_numbers()
    centred = codes.astype(np.float32) - np.repeat(zeros, GROUP, axis=1)
    weights: NDArray[np.float32] = centred * np.repeat(scales, GROUP, axis=1)
    return weights


def _input() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((1, TOKENS, INPUTS)).astype(np.float32)


def _model(nodes: list[Any], constants: dict[str, Any], kind: int, opset: int) -> bytes:
    from onnx import helper, numpy_helper

    values = [
        numpy_helper.from_array(value, name) if isinstance(value, np.ndarray) else value
        for name, value in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("x", kind, [1, TOKENS, INPUTS])],
        [helper.make_tensor_value_info("y", kind, [1, TOKENS, OUTPUTS])],
        values,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def int4_contrib() -> Trial:
    """MatMulNBits with stored zero points."""
    from onnx import TensorProto, helper

    codes, scales, zeros = int4_numbers()
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales", "zeros"],
        ["y"],
        domain="com.microsoft",
        K=INPUTS,
        N=OUTPUTS,
        bits=4,
        block_size=GROUP,
    )
    constants = {
        "codes": pack_rows(codes, 4).reshape(OUTPUTS, INPUTS // GROUP, GROUP // 2),
        "scales": scales,
        "zeros": (zeros[:, 0::2] | (zeros[:, 1::2] << 4)).astype(np.uint8),
    }
    x = _input()
    model = _model([node], constants, TensorProto.FLOAT, 17)
    return Trial(model, x, x @ _dequantized().T)


def int4_standard() -> Trial:
    """DequantizeLinear in blocks, then MatMul: standard operators of opset 21."""
    from onnx import TensorProto, helper

    codes, scales, zeros = int4_numbers()

    def uint4(name: str, values: NDArray[np.uint8]) -> Any:
        flat = np.ascontiguousarray(values).reshape(-1)
        packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
        return helper.make_tensor(name, TensorProto.UINT4, values.shape, packed, raw=True)

    nodes = [
        helper.make_node(
            "DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0, block_size=GROUP
        ),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {
        "codes": uint4("codes", codes.T),
        "scales": np.ascontiguousarray(scales.T),
        "zeros": uint4("zeros", zeros.T),
    }
    x = _input()
    model = _model(nodes, constants, TensorProto.FLOAT, 21)
    return Trial(model, x, x @ _dequantized().T)


def float16() -> Trial:
    """MatMul and Add in half precision."""
    from onnx import TensorProto, helper

    random = np.random.default_rng(2)
    weight = (random.standard_normal((INPUTS, OUTPUTS)) / 8).astype(np.float16)
    bias = random.standard_normal(OUTPUTS).astype(np.float16)
    x = _input().astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    model = _model(nodes, {"weight": weight, "bias": bias}, TensorProto.FLOAT16, 17)
    expected = x.astype(np.float32) @ weight.astype(np.float32) + bias
    return Trial(model, x, expected)


INT4: dict[str, Callable[[], Trial]] = {"contrib": int4_contrib, "standard": int4_standard}
