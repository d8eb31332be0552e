"""What commands make of a checkpoint that another tool quantized."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_models import Awq, Gptq, Mlx, write_foreign

from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.library import export, quantize, verify


def test_inspect_says_how_it_is_stored(tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", Gptq(), Gptq().config())
    found = describe(str(model.folder))
    assert found.kind == "quantized-checkpoint"
    stored = {row.name: row for row in found.tensors}
    matrix = stored["model.layers.0.mlp.down_proj.weight"]  # [64, 96], groups of 32
    assert matrix.storage == "gptq int4 g32 symmetric"
    assert matrix.size_bytes == 64 * 96 // 2 + 3 * 64 * 2 + 3 * 64 // 2 + 4 * 96
    assert stored["lm_head.weight"].storage == "F16"
    assert any("GPTQ" in note for note in found.notes)


def test_quantize_warns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_foreign(tmp_path / "m", Awq(), Awq().config())
    quantize(model.folder, tmp_path / "q", method="rtn", bits=8)
    assert "was quantized before (awq int4 g32 asymmetric)" in capfd.readouterr().err
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_settings_of_mlx_do_not_stay(tmp_path: Path) -> None:
    model = write_foreign(
        tmp_path / "m", Mlx(), {"group_size": 32, "bits": 4}, "quantization", floats=()
    )
    quantize(model.folder, tmp_path / "q", method="rtn", bits=8)
    assert "quantization" not in json.loads((tmp_path / "q" / "config.json").read_text())


def test_an_export_holds_the_same_numbers(tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "m", Gptq(ordered=True), Gptq(ordered=True).config())
    export(model.folder, tmp_path / "onnx", format="onnx")
    name = "model.layers.0.mlp.up_proj.weight"
    copy = open_checkpoint(str(tmp_path / "onnx"))
    np.testing.assert_allclose(copy.rows(name), model.weights[name], rtol=1e-3, atol=1e-6)


def test_verify_judges_it(tmp_path: Path) -> None:
    """The original is what the codes stand for, so that nothing may differ."""
    packer = Gptq(8)
    model = write_foreign(tmp_path / "m", packer, packer.config())
    original = tmp_path / "original"
    export(model.folder, original, format="onnx")
    verdict = verify(model.folder, original, max_tokens=128, window=64, max_kl=0.001)
    assert verdict.summary.kl_mean < 1e-4
