"""Checkpoints that other tools quantized: their settings changed, or their weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foreign_models import (
    Awq,
    BnbFourBits,
    BnbInt8,
    FourBitFloats,
    Fp8,
    Gptq,
    Mlx,
    PackedInt,
    compressed_config,
    write_foreign,
)

from dsconv.convert.open import open_checkpoint

from .mutations import mutate_json, mutate_safetensors
from .subjects import SIZES, Subject

KEY = "quantization_config"
DYNAMIC = {"dynamic": {"-:.*up_proj": {}, "+:.*down.*": {"bits": 4, "group_size": 32}}}
FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head*"]}
MLX_SETTINGS: Mapping[str, Any] = {
    **{"group_size": 16, "bits": 3, "mode": "affine", "lm_head": False},
    "model.layers.0.mlp.up_proj": {"group_size": 16, "bits": 3},
}


def _with_settings(packer: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    return packer, {**packer.config(), **more}


# Packers and their settings, by the tool that made the format.
VARIANTS: Mapping[str, list[tuple[Any, dict[str, Any]]]] = {
    "gptq": [
        _with_settings(Gptq(), **DYNAMIC),
        _with_settings(Gptq(3, 16, symmetric=False, ordered=True, v2=True)),
        _with_settings(Gptq(symmetric=False), meta={"quantizer": ["gptqmodel:2.0"]}),
    ],
    "awq": [_with_settings(Awq(16), modules_to_not_convert=["lm_head"])],
    "bitsandbytes": [
        _with_settings(BnbInt8()),
        _with_settings(BnbFourBits(nested=True)),
        _with_settings(BnbFourBits("fp4", block=128)),
    ],
    "fp8": [
        _with_settings(Fp8((20, 28)), modules_to_not_convert=["lm_head"]),
        _with_settings(Fp8((0, 0))),
        (FourBitFloats(modelopt=True), MODELOPT),
    ],
    "mlx": [(Mlx(3, 16), dict(MLX_SETTINGS))],
    "compressed": [
        _with_settings(PackedInt(5, 16, symmetric=False)),
        _with_settings(PackedInt(3, symmetric=False, packed_zeros=False)),
        (
            FourBitFloats(),
            compressed_config(
                "nvfp4-pack-quantized", {**FLOAT4, "strategy": "tensor_group", "group_size": 16}
            ),
        ),
        (
            Fp8((20, 28)),
            compressed_config("float-quantized", {**FLOAT8, "block_structure": [20, 28]}),
        ),
    ],
}


class ForeignCheckpoints:
    """A third of the inputs have other settings, a third another header, a third other numbers."""

    def __init__(self, tool: str, folder: Path) -> None:
        self.key = "quantization" if tool == "mlx" else KEY
        self.models = []
        for index, (packer, settings) in enumerate(VARIANTS[tool]):
            if tool == "compressed" and "float" in settings["format"]:  # one name for all scales
                packer = _renamed(packer)
            model = write_foreign(folder / f"m{index}", packer, settings, self.key, **SIZES)
            self.models.append(model.folder)
        self.files = [
            ((m / "config.json").read_text(), (m / "model.safetensors").read_bytes())
            for m in self.models
        ]
        self.model = self.models[0]

    def prepare(self, rng: random.Random) -> int:
        number = rng.randrange(len(self.models))
        self.model = self.models[number]
        config, weights = self.files[number]
        text = config.encode()
        way = rng.randrange(3)
        if way == 0:
            content = json.loads(config)
            part = mutate_json(rng, json.dumps(content.pop(self.key)))
            text = json.dumps(content)[:-1].encode() + f', "{self.key}": '.encode() + part + b"}"
        elif way == 1:
            weights = mutate_safetensors(rng, weights)
        else:
            weights = _other_numbers(rng, weights)
        (self.model / "config.json").write_bytes(text)
        (self.model / "model.safetensors").write_bytes(weights)
        return len(text) + len(weights)

    def drive(self) -> None:
        checkpoint = open_checkpoint(str(self.model))
        for name, parameter in checkpoint.parameters.items():
            rows = parameter.shape[0]
            checkpoint.source.storage(name)
            checkpoint.source.nbytes(name)
            checkpoint.rows(name, rows // 3, rows // 2)
            checkpoint.rows(name)


def _other_numbers(rng: random.Random, weights: bytes) -> bytes:
    """Bytes behind the header: codes, scales, indexes of groups."""
    data = bytearray(weights)
    start = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.randint(1, 40)):
        place, size = rng.randrange(start, len(data)), rng.choice((1, 2, 4, 8))
        new = rng.choice((b"\xff" * size, bytes(size), rng.randbytes(size), b"\x7f" * size))
        data[place : place + size] = new[: len(data) - place]
    return bytes(data)


def _renamed(packer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def rename(matrix: Any) -> Any:
        tensors, values = packer(matrix)
        return {kind.replace("scale_inv", "scale"): t for kind, t in tensors.items()}, values

    return rename


def kinds() -> Mapping[str, Callable[[Path], Subject]]:
    def make(tool: str) -> Callable[[Path], Subject]:
        return lambda folder: ForeignCheckpoints(tool, folder)

    return {f"foreign-{tool}": make(tool) for tool in VARIANTS}
