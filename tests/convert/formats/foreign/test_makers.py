"""Formats against the libraries that made them; those that are not installed are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from foreign_models import ForeignModel, Tensors, compressed_config, write_foreign

from dsconv.convert.open import open_checkpoint

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"num_bits": 4, "type": "float"}
TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("pack-quantized", INT4),
    "int4-asymmetric": ("pack-quantized", {**INT4, "symmetric": False}),
    "int3-asymmetric": ("pack-quantized", {**INT4, "num_bits": 3, "symmetric": False}),
    "int7-row": ("pack-quantized", {**INT8, "num_bits": 7}),
    "int2-tensor": ("pack-quantized", {"num_bits": 2, "type": "int", "strategy": "tensor"}),
    "int8-asymmetric": ("int-quantized", {**INT8, "symmetric": False}),
    "int8-naive": ("naive-quantized", INT8),
    "fp8-row": ("float-quantized", {**FP8, "strategy": "channel"}),
    "fp8-tensor": ("float-quantized", {**FP8, "strategy": "tensor"}),
    "fp8-group": ("naive-quantized", {**FP8, "strategy": "group", "group_size": 32}),
    "fp8-block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [16, 32]}),
    "nvfp4": ("nvfp4-pack-quantized", {**FP4, "strategy": "tensor_group", "group_size": 16}),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {**FP4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "mxfp8": (
        "mxfp8-quantized",
        {**FP8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
}


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.contiguous().view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.contiguous().numpy()


class Compressor:
    """The library's own: it packs, and it says what the packed tensors stand for."""

    def __init__(self, form: str, weights: dict[str, Any]) -> None:
        self.args = QuantizationArgs(**weights)
        inputs = QuantizationArgs(**TOKENS) if form == "float-quantized" else None
        self.scheme = QuantizationScheme(
            targets=["Linear"], weights=self.args, input_activations=inputs
        )
        self.library = BaseCompressor.get_value_from_registry(form)

    def __call__(self, matrix: np.ndarray[Any, Any]) -> tuple[Tensors, np.ndarray[Any, Any]]:
        weight = torch.from_numpy(matrix.copy())
        state = {"weight": weight, **self._parameters(weight)}
        packed = self.library.compress(dict(state), self.scheme)
        stored = {k: as_numpy(v) for k, v in packed.items() if isinstance(v, torch.Tensor)}
        plain = self.library.decompress(dict(packed), self.scheme)["weight"]
        return stored, plain.double().numpy()

    def _parameters(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scales and zero points of the smallest and largest weights."""
        rows, columns = weight.shape
        size = {"tensor": weight.numel(), "channel": columns}
        strategy = str(self.args.strategy)
        if strategy == "block":
            high, wide = self.args.block_structure or (1, 1)
            parts = weight.reshape(rows // high, high, columns // wide, wide).transpose(1, 2)
            parts = parts.reshape(rows // high, columns // wide, -1)
        elif strategy == "tensor":
            parts = weight.reshape(1, -1)[:, None]
        else:
            group = size.get(strategy, self.args.group_size or columns)
            parts = weight.reshape(rows, columns // group, group)
        extra: dict[str, torch.Tensor] = {}
        outer = None
        if strategy == "tensor_group":
            outer = extra["weight_global_scale"] = 448 * 6 / weight.abs().max().reshape(1)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), self.args, outer)
        if strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        if not self.args.symmetric:
            extra["weight_zero_point"] = zero.to(torch.int8)
        return {"weight_scale": scale, **extra}


def check(model: ForeignModel, rtol: float = 1e-6) -> None:
    checkpoint = open_checkpoint(str(model.folder))
    assert model.weights
    for name, expected in model.weights.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(checkpoint.rows(name), expected, rtol=rtol, atol=1e-7 * scale)


@pytest.mark.parametrize("case", COMPRESSED)
def test_compressed_tensors(case: str, tmp_path: Path) -> None:
    form, weights = COMPRESSED[case]
    settings = compressed_config(form, weights)
    rounded = case in ("nvfp4", "mxfp4", "mxfp8")  # the library gives those in bfloat16
    check(write_foreign(tmp_path / "m", Compressor(form, weights), settings), rounded * 4e-3 + 1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_of_four_bits(kind: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")

    def packer(matrix: Any) -> Any:
        weight = torch.from_numpy(matrix)
        packed, state = functional.quantize_4bit(
            weight, quant_type=kind, compress_statistics=nested
        )
        tensors = {"weight": packed, **{f"weight.{k}": v for k, v in state.as_dict(True).items()}}
        plain = functional.dequantize_4bit(packed, state)
        return {name: value.numpy() for name, value in tensors.items()}, plain.double().numpy()

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    # Its CPU kernel gives other numbers than its GPU ones where rows are no multiple of a block.
    check(write_foreign(tmp_path / "m", packer, settings, intermediate_size=128))


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")

    def packer(matrix: Any) -> Any:
        codes, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(matrix).half())
        plain = functional.int8_vectorwise_dequant(codes, scales)
        return {"weight": codes.numpy(), "SCB": scales.numpy()}, plain.double().numpy()

    check(
        write_foreign(
            tmp_path / "m", packer, {"quant_method": "bitsandbytes", "load_in_8bit": True}
        )
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits: int, tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core", reason="needs mlx[cpu]")
    mlx.set_default_device(mlx.cpu)

    def packer(matrix: Any) -> Any:
        words, scales, biases = mlx.quantize(mlx.array(matrix), group_size=32, bits=bits)
        plain = mlx.dequantize(words, scales, biases, group_size=32, bits=bits)
        tensors = {"weight": words, "scales": scales, "biases": biases}
        return {name: np.array(value) for name, value in tensors.items()}, np.array(plain)

    settings = {"group_size": 32, "bits": bits}
    check(write_foreign(tmp_path / "m", packer, settings, "quantization", floats=()))
