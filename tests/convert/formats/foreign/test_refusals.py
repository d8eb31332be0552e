"""What is not what its settings say, or is known and not read: refused with place and cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_models import (
    Awq,
    BnbFourBits,
    Fp8,
    Gptq,
    Mlx,
    PackedInt,
    compressed_config,
    write_foreign,
)

from dsconv.convert.open import open_checkpoint
from dsconv.errors import DsconvError, InputError, UnsupportedError

MODULE = "model.layers.1.mlp.down_proj"


def read_everything(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    for name in checkpoint.parameters:
        checkpoint.rows(name)


def without(kind: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[f"{MODULE}.{kind}"]

    return change


def setting(kind: str, value: float, place: Any = (0, 0)) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensor = tensors[f"{MODULE}.{kind}"].copy()
        tensor[place] = value
        tensors[f"{MODULE}.{kind}"] = tensor

    return change


@pytest.mark.parametrize(
    ("packer", "change", "words"),
    [
        (Gptq(), without("qzeros"), "down_proj.qzeros' is missing"),
        (Gptq(ordered=True), without("g_idx"), "down_proj.g_idx' is missing"),
        (Gptq(), setting("g_idx", 3, 0), "group 3 is outside 0..2"),
        (Gptq(), setting("g_idx", -1, 0), "group -1 is outside 0..2"),
        (Gptq(), setting("scales", np.nan), "a scale of nan"),
        (Gptq(), setting("scales", np.inf), "a scale of inf"),
        (Gptq(), setting("scales", 0), "a scale of 0 for weights that are not all zero"),
        (Gptq(), setting("qzeros", 0), "a zero point of 1 where sym is true"),
        (Awq(), setting("scales", np.nan), "a scale of nan"),
        (Awq(), without("scales"), "down_proj.scales' is missing"),
        (Fp8(), setting("weight_scale_inv", np.nan), "a scale of nan"),
        (Fp8(), setting("weight", np.nan), "a weight of nan"),
        (Fp8(), without("weight_scale_inv"), "stored as F8_E4M3"),
        (BnbFourBits(), setting("weight.absmax", np.nan, 0), "a scale of nan"),
        (BnbFourBits(), without("weight.quant_map"), "quant_map' is missing"),
        (BnbFourBits(nested=True), without("weight.nested_absmax"), "nested_absmax' is missing"),
        (PackedInt(3), setting("weight_scale", np.nan), "a scale of nan"),
        (PackedInt(3), without("weight_scale"), "weight_scale' is missing"),
    ],
)
def test_damaged_tensors(packer: Any, change: Any, words: str, tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", packer, packer.config(), change=change)
    with pytest.raises(InputError) as caught:
        read_everything(model.folder)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("packer", "settings", "words"),
    [
        (Gptq(), {"group_size": 16}, "down_proj.qzeros' has shape [3, 8]|q_proj.qzeros' has shape"),
        (Gptq(), {"bits": 8}, "qweight' has shape"),
        (Gptq(), {"bits": 5}, "5 bits in words of int32 are not supported"),
        (Gptq(), {"checkpoint_format": "marlin"}, "packed for one kernel"),
        (Gptq(), {"adapter": {"path": "x"}}, "adapter"),
        (Gptq(), {"group_size": 0}, "0 weights to a group"),
        (Gptq(), {"dynamic": {"-:.*down_proj": {}}}, "keep model.layers.0.mlp.down_proj in float"),
        (Gptq(), {"dynamic": {"+:(a+)+": {}}}, "might run for ever"),
        (Awq(), {"version": "marlin"}, "packed for one kernel"),
        (Awq(), {"zero_point": False}, "zero_point False"),
        (Awq(), {"modules_to_not_convert": ["mlp"]}, "is there, but the quantization settings"),
        (BnbFourBits(), {"load_in_8bit": True}, "neither 4 bits nor 8, or both"),
        (BnbFourBits(), {"bnb_4bit_quant_type": "nf2"}, "'nf2' is not supported"),
        (Fp8(), {"weight_block_size": [128]}, "is not a pair of sizes"),
        (Fp8(), {"weight_block_size": [8, 8]}, "has shape"),
        (Fp8(), {"fmt": "e3m4"}, "fmt 'e3m4' is not supported"),
        (PackedInt(3), {"format": "sparse-24-bitmask"}, "sparse weights"),
        (PackedInt(3), {"format": "dense"}, "rounded only as the model runs"),
        (PackedInt(3), {"sparsity_config": {"format": "sparse-bitmask"}}, "sparse weights"),
        (PackedInt(4), {"transform_config": {"config_groups": {"R1": 1}}}, "transform_config"),
        (PackedInt(3), {"transform_config": {"config_groups": {"R1": 1}}}, "transform_config"),
    ],
)
def test_settings_that_do_not_fit(
    packer: Any, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = write_foreign(tmp_path / "m", packer, packer.config() | settings)
    with pytest.raises(DsconvError) as caught:
        read_everything(model.folder)
    assert any(part in caught.value.message for part in words.split("|")), caught.value.message
    assert isinstance(caught.value, InputError | UnsupportedError)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("hqq", "HQQ keeps its groups"),
        ("aqlm", "codebooks"),
        ("exl2", "mixes widths"),
        ("exl3", "trellis"),
        ("spqr", "sparse matrix"),
        ("torchao", "tensor classes"),
        ("new-method", "'new-method' is not supported"),
    ],
)
def test_methods_that_are_not_read(method: str, words: str, tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", Gptq(), {"quant_method": method})
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(str(model.folder))
    assert words in caught.value.message
    assert "bitsandbytes" in caught.value.hint


def test_weights_without_settings(tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", Gptq(), {}, "")
    with pytest.raises(InputError, match="belongs to quantized weights"):
        open_checkpoint(str(model.folder))


def test_a_layer_that_config_json_does_not_have(tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", Gptq(), Gptq().config())
    path = model.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"layers\.1\..* is of a quantized matrix"):
        open_checkpoint(str(model.folder))


def test_unknown_settings_are_named(tmp_path: Path) -> None:
    settings = {**Gptq().config(), "new_trick": 3, "neutral": None}
    checkpoint = open_checkpoint(str(write_foreign(tmp_path / "m", Gptq(), settings).folder))
    assert any("not used: new_trick" in note for note in checkpoint.notes)


def test_rounded_activations_are_named(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    settings = compressed_config("float-quantized", weights, inputs)
    model = write_foreign(tmp_path / "m", Fp8((1, 0)), settings)
    assert any("stay float" in note for note in open_checkpoint(str(model.folder)).notes)


def test_mlx_layers_of_their_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"group_size": 32, "bits": 4}
    settings |= {"lm_head": False, "model.layers.0.mlp.up_proj": {"group_size": 32, "bits": 8}}
    model = write_foreign(tmp_path / "m", Mlx(), settings, "quantization")
    with pytest.raises(InputError, match=r"up_proj\.weight' has shape"):
        open_checkpoint(str(model.folder))
