"""Weights that training left broken or empty, through every quantizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import write_checkpoint

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import METHODS, Floats, QuantizedMatrix, Scheme

SCHEMES: tuple[Scheme, ...] = (
    *(
        IntegerScheme(4, 32),
        IntegerScheme(4, 128, False),
        IntegerScheme(8, -1),
        IntegerScheme(8, 32, False),
    ),
    *(ScaleMin(3), ScaleMin(6), Int8Rows()),
)
ROWS, COLUMNS = 6, 256
LARGEST_DENORMAL = np.nextafter(np.float32(2.0**-126), np.float32(0))


def normal() -> Floats:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def one_group_zero() -> Floats:
    weights = normal()
    weights[2, 32:64] = 0
    return weights


def one_outlier() -> Floats:
    weights = normal() * np.float32(1e-4)
    weights[1, 7] = 3000
    return weights


# Finite, however strange: the result must be finite and near.
FINITE: dict[str, Callable[[], Floats]] = {
    "zero": lambda: np.zeros((ROWS, COLUMNS), np.float32),
    "negative zero": lambda: np.full((ROWS, COLUMNS), -0.0, np.float32),
    "constant": lambda: np.full((ROWS, COLUMNS), 0.0123, np.float32),
    "constant negative": lambda: np.full((ROWS, COLUMNS), -7.5, np.float32),
    "denormal": lambda: normal() * np.float32(1e-40),
    "largest denormal": lambda: np.full((ROWS, COLUMNS), LARGEST_DENORMAL, np.float32),
    "smallest": lambda: np.full((ROWS, COLUMNS), 1e-45, np.float32),
    "tiny": lambda: normal() * np.float32(1e-8),
    "large": lambda: normal() * np.float32(1e4),
    "a group of zeros": one_group_zero,
    "one weight": lambda: np.eye(ROWS, COLUMNS, dtype=np.float32),
    "one outlier": one_outlier,
    "two values": lambda: np.where(normal() > 0, np.float32(1), np.float32(-1)),
}


def by_gptq(weights: Floats, scheme: Scheme) -> QuantizedMatrix:
    inputs = np.random.default_rng(1).standard_normal((600, COLUMNS)).astype(np.float32)
    return gptq(weights, factorize([inputs.T @ inputs / 600], scheme), scheme)


def by_gptq_of_dead_inputs(weights: Floats, scheme: Scheme) -> QuantizedMatrix:
    return gptq(weights, factorize([np.zeros((COLUMNS, COLUMNS), np.float32)], scheme), scheme)


QUANTIZERS: dict[str, Callable[[Floats, Scheme], QuantizedMatrix]] = {
    **METHODS,
    "gptq": by_gptq,
    "gptq, dead inputs": by_gptq_of_dead_inputs,
}


@pytest.mark.parametrize("kind", FINITE)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_finite_weights_stay_finite(kind: str, quantizer: str, scheme: Scheme) -> None:
    weights = FINITE[kind]()
    values = QUANTIZERS[quantizer](weights, scheme).dequantize()
    assert values.shape == weights.shape
    assert np.isfinite(values).all()
    # No weight may move by more than a step of the widest grid (3 bits over the largest weight).
    largest = np.abs(weights).max(axis=1, keepdims=True)
    assert (np.abs(values - weights) <= largest / 2 + 2.0**-15).all()
    if not weights.any():
        assert not values.any()


# ---------------------------------------------------------------- NaN and infinity

BROKEN: dict[str, tuple[float, ...]] = {
    "NaN": (float("nan"),),
    "infinity": (float("inf"),),
    "negative infinity": (-float("inf"),),
    "all three": (float("nan"), float("inf"), -float("inf")),
}
NAME = "model.layers.1.mlp.down_proj.weight"
WAYS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "search": {"method": "search"},
    "asymmetric": {"method": "search", "symmetric": False},
    "scale-min": {"method": "search", "scheme_name": "scale-min"},
    "int8 rows": {"method": "rtn", "bits": 8, "activations": "int8"},
    "whole rows": {"method": "search", "bits": 8, "group_size": -1},
}


def damaged(folder: Path, values: tuple[float, ...], dtype: str) -> Path:
    model = write_checkpoint(folder / "m", torch_dtype=dtype)
    tensors = load_file(model / "model.safetensors")
    flat = tensors[NAME].reshape(-1)
    flat[: len(values)] = np.array(values, np.float32).astype(flat.dtype)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_finite_is_named_and_counted(tmp_path: Path, kind: str, way: str) -> None:
    dtype = "bfloat16" if kind == "NaN" else "float16"
    model = damaged(tmp_path, BROKEN[kind], dtype)
    options = QuantizeOptions(threads=1, **WAYS[way])
    words = rf"tensor '{NAME}': {len(BROKEN[kind])} of 6144 values are NaN or infinite"
    with pytest.raises(InputError, match=words) as caught:
        quantize_checkpoint(open_checkpoint(str(model)), options, tmp_path / "q")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_model_of_zeros(tmp_path: Path, way: str) -> None:
    model = write_checkpoint(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    save_file({name: np.zeros_like(t) for name, t in tensors.items()}, model / "model.safetensors")
    options = QuantizeOptions(threads=1, **WAYS[way])
    quantize_checkpoint(open_checkpoint(str(model)), options, tmp_path / "q")
    checkpoint = open_checkpoint(str(tmp_path / "q"))
    for name in checkpoint.parameters:
        assert not checkpoint.rows(name).any(), name
    assert ml_dtypes.bfloat16(0) == 0
