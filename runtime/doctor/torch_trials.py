"""The trials of doctor on a torch device."""

from __future__ import annotations

import torch

from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.runtime.sessions.packed_linear import PackedMatrix

from .graphs import GROUP, Trial, int4_numbers


def run_int4(trial: Trial, device: str) -> float:
    """A packed matrix as sessions use it, in float32."""
    codes, scales, zeros = int4_numbers()
    scheme = IntegerScheme(4, GROUP, symmetric=False)
    quantized = IntegerMatrix(codes, scales.astype("float16"), zeros, scheme)
    matrix = PackedMatrix(quantized, torch.float32, device)
    x = torch.from_numpy(trial.x).to(device)
    return trial.error_of(matrix.product(x).cpu().numpy())


def run_float16(trial: Trial, device: str) -> float:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(trial.model).graph
    weight, bias = (
        torch.from_numpy(numpy_helper.to_array(value).copy()).to(device)
        for value in graph.initializer
    )
    x = torch.from_numpy(trial.x).to(device)
    return trial.error_of((x @ weight + bias).cpu().numpy())
