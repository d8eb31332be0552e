"""Every format against the textbook packer of `support/foreign_models.py`, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from foreign_models import (
    Awq,
    BnbFourBits,
    BnbInt8,
    ForeignModel,
    FourBitFloats,
    Fp8,
    Gptq,
    Mlx,
    PackedInt,
    compressed_config,
    write_foreign,
)

from dsconv.convert.open import open_checkpoint

PER_TENSOR, PER_ROW = (0, 0), (1, 0)
INPUTS = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True}
NVFP4_WEIGHTS = {**FLOAT4, "strategy": "tensor_group", "group_size": 16}
MXFP4_WEIGHTS = {**FLOAT4, "strategy": "group", "group_size": 32}
QUARK = {
    "quant_method": "quark",
    "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
    "exclude": ["lm_head"],
    "export": {"weight_format": "real_quantized"},
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head*"]}
GPTQ_KINDS = [
    Gptq(),
    Gptq(2),
    Gptq(3),
    Gptq(8),
    Gptq(group=-1),
    Gptq(8, group=-1, v2=True),
    Gptq(symmetric=False),
    Gptq(3, symmetric=False),
    Gptq(2, symmetric=False, v2=True),
    Gptq(ordered=True),
    Gptq(3, symmetric=False, ordered=True, v2=True),
    Gptq(group=16, width=16),
    Gptq(8, width=8),
    Gptq(width=64, symmetric=False),
]
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    **{str(kind): (kind, kind.config(), "gptq") for kind in GPTQ_KINDS},
    "awq": (Awq(), Awq().config(), "awq int4 g32"),
    "awq-16": (Awq(16), Awq(16).config(), "awq int4 g16"),
    "awq-gemv": (Awq(gemv=True), Awq(gemv=True).config(), "awq-gemv int4 g32"),
    "bnb-int8": (BnbInt8(), BnbInt8().config(), "bitsandbytes int8"),
    "nf4": (BnbFourBits(), BnbFourBits().config(), "bitsandbytes nf4 g64"),
    "nf4-odd": (BnbFourBits(block=128), BnbFourBits(block=128).config(), "bitsandbytes nf4 g128"),
    "fp4-double": (
        BnbFourBits("fp4", True),
        BnbFourBits("fp4", True).config(),
        "bitsandbytes fp4 g64 double",
    ),
    "fp8-blocks": (Fp8(), Fp8().config(), "fp8 fp8 16x16"),
    "fp8-ragged": (Fp8((20, 28)), Fp8((20, 28)).config(), "fp8 fp8 20x28"),
    "fp8-tensor": (Fp8(PER_TENSOR), Fp8(PER_TENSOR).config(), "fp8 fp8 tensor"),
    "fp8-e5m2": (
        Fp8(PER_TENSOR, "float8_e5m2"),
        Fp8(PER_TENSOR).config(),
        "fp8 fp8 tensor",
    ),
    "fbgemm": (
        Fp8(PER_ROW),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        "fp8 fp8 row",
    ),
    "modelopt": (Fp8(PER_TENSOR), MODELOPT, "modelopt fp8 tensor"),
    "modelopt-nvfp4": (
        FourBitFloats(modelopt=True),
        {**MODELOPT, "quant_algo": "NVFP4"},
        "modelopt nvfp4",
    ),
    "quark": (Fp8(PER_TENSOR), QUARK, "quark fp8"),
    "auto-round-gptq": (
        Gptq(),
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            "bits": 4,
            "group_size": 32,
            "sym": True,
        },
        "gptq int4 g32 symmetric",
    ),
    "packed-3": (PackedInt(3), PackedInt(3).config(), "compressed-tensors int3 g32"),
    "packed-8": (PackedInt(8, -1), PackedInt(8, -1).config(), "compressed-tensors int8 row"),
    "packed-asymmetric": (
        PackedInt(symmetric=False),
        PackedInt(symmetric=False).config(),
        "compressed-tensors int4 g32 asymmetric",
    ),
    "packed-5-asymmetric": (
        PackedInt(5, symmetric=False),
        PackedInt(5, symmetric=False).config(),
        "compressed-tensors int5 g32 asymmetric",
    ),
    "packed-old-zero-points": (
        PackedInt(symmetric=False, packed_zeros=False, dtype=np.float16),
        PackedInt(symmetric=False).config(),
        "compressed-tensors int4 g32 asymmetric",
    ),
    "float-quantized": (
        Fp8(PER_ROW),
        compressed_config("float-quantized", {**FLOAT8, "strategy": "channel"}, INPUTS),
        "compressed-tensors fp8 row",
    ),
    "nvfp4": (
        FourBitFloats(),
        compressed_config("nvfp4-pack-quantized", NVFP4_WEIGHTS),
        "compressed-tensors nvfp4",
    ),
    "mxfp4": (
        FourBitFloats(32),
        compressed_config("mxfp4-pack-quantized", MXFP4_WEIGHTS),
        "compressed-tensors mxfp4",
    ),
}


def check_weights(model: ForeignModel, storage: str) -> None:
    checkpoint = open_checkpoint(str(model.folder))
    assert checkpoint.quantization is None
    assert "quantization_config" not in checkpoint.config
    assert model.weights
    for name, expected in model.weights.items():
        assert checkpoint.source.storage(name).startswith(storage)
        found = checkpoint.rows(name)
        assert found.dtype == np.float32
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * scale)
        for start, stop in ((0, 1), (7, 29), (13, len(expected) - 3)):
            np.testing.assert_array_equal(checkpoint.rows(name, start, stop), found[start:stop])
        size = checkpoint.source.nbytes(name)
        assert 0 < size < 4 * expected.size


@pytest.mark.parametrize("case", CASES)
def test_weights(case: str, tmp_path: Path) -> None:
    packer, settings, storage = CASES[case]
    check_weights(write_foreign(tmp_path / "m", packer, settings), storage)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_mlx(bits: int, key: str, tmp_path: Path) -> None:
    settings = {"group_size": 32, "bits": bits}
    model = write_foreign(tmp_path / "m", Mlx(bits), settings, key, floats=())
    check_weights(model, f"mlx int{bits} g32")
    assert "model.embed_tokens.weight" in model.weights


@pytest.mark.parametrize(
    ("name", "packer", "settings"),
    [
        ("quantize_config.json", Gptq(), {"bits": 4, "group_size": 32, "desc_act": False}),
        (
            "quant_config.json",
            Awq(),
            {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
        ),
        (
            "hf_quant_config.json",
            Fp8(PER_TENSOR),
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
        ),
    ],
)
def test_settings_of_older_checkpoints(
    name: str, packer: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = write_foreign(tmp_path / "m", packer, {}, "")
    (model.folder / name).write_text(json.dumps(settings))
    check_weights(model, "")


def test_gptqmodel_borrows_from_whole_words(tmp_path: Path) -> None:
    """Zero points of 0 in v1: what is subtracted from a word passes into the neighbour."""

    def packer(matrix: Any) -> Any:
        tensors, _ = Gptq(symmetric=False, v2=True)(matrix)
        zeros = np.arange(matrix.shape[0]) % 16  # 0 among them
        words = np.zeros((tensors["qzeros"].shape[0], matrix.shape[0] // 8), np.uint32)
        for row, zero in enumerate(zeros):
            words[:, row // 8] |= np.uint32(zero) << np.uint32(4 * (row % 8))
        ones = np.uint32(0x11111111)
        with np.errstate(over="ignore"):
            tensors["qzeros"] = (words - ones).view(np.int32)
        scales = tensors["scales"].T.astype(np.float64)
        codes = np.stack(
            [
                (tensors["qweight"].view(np.uint32)[index // 8] >> np.uint32(4 * (index % 8))) & 15
                for index in range(matrix.shape[1])
            ],
            1,
        ).astype(np.int64)
        spread = scales[:, np.arange(matrix.shape[1]) // 32]
        return tensors, (codes - zeros[:, None]) * spread

    settings = {**Gptq(symmetric=False).config(), "meta": {"quantizer": ["gptqmodel:2.0.0"]}}
    check_weights(write_foreign(tmp_path / "m", packer, settings), "gptq")


def test_rules_per_module_of_gptqmodel(tmp_path: Path) -> None:
    """The first pattern that matches counts; `-:` is float."""

    def wide(matrix: Any) -> Any:
        return (Gptq(8, 16) if matrix.shape == (64, 96) else Gptq())(matrix)

    dynamic = {"-:.*up_proj": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 16}}
    settings = {**Gptq().config(), "dynamic": dynamic}
    floats = ("lm_head", "embed_tokens", "up_proj")
    check_weights(write_foreign(tmp_path / "m", wide, settings, floats=floats), "gptq int")


def test_scales_in_bfloat16(tmp_path: Path) -> None:
    packer = PackedInt(8, -1, dtype=ml_dtypes.bfloat16)
    settings = PackedInt(8, -1).config()
    model = write_foreign(tmp_path / "m", packer, settings)
    checkpoint = open_checkpoint(str(model.folder))
    assert checkpoint.quantization is not None  # dsconv's own scheme holds it: it stays quantized
    for name, expected in model.weights.items():
        np.testing.assert_allclose(checkpoint.rows(name), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ["static", "weight", None, False])
def test_an_order_of_rounding_alone_stays_quantized(order: Any, tmp_path: Path) -> None:
    packer = PackedInt(4, 32, dtype=np.float16)
    settings = packer.config()
    settings["config_groups"]["group_0"]["weights"]["actorder"] = order
    settings["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    model = write_foreign(tmp_path / "m", packer, settings)
    checkpoint = open_checkpoint(str(model.folder))
    assert checkpoint.quantization is not None
    assert any("cache of keys and values" in note for note in checkpoint.notes)


def test_groups_of_reordered_columns(tmp_path: Path) -> None:
    """`weight_g_idx`, as earlier versions of compressed-tensors wrote it."""

    def packer(matrix: Any) -> Any:
        order = np.random.default_rng(1).permutation(matrix.shape[1])
        tensors, values = PackedInt(8, 32)(matrix[:, order])
        codes = tensors["weight_packed"].view(np.uint8)[:, np.argsort(order)]
        index = np.empty(len(order), np.int32)
        index[order] = np.arange(len(order)) // 32
        tensors |= {"weight_packed": codes.copy().view(np.int32), "weight_g_idx": index}
        return tensors, values[:, np.argsort(order)]

    settings = PackedInt(8, 32).config()
    settings["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    model = write_foreign(tmp_path / "m", packer, settings)
    check_weights(model, "compressed-tensors int8 g32 symmetric act-order")
