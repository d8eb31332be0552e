"""How scale and minimum lie in a checkpoint: written, opened again, shown, refused where unknown.

(The integer scheme's layout is compressed-tensors' own; test_run.py reads it with that.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import assert_refused, call_main
from logits import random_tokens
from outputs import folder_hash, quantized
from reference_models import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from dsconv.convert.checkpoint.matrix_layout import encode, has_shape_tensor, stored_tensors
from dsconv.convert.families.inventory import Role
from dsconv.convert.files.safetensors import DTYPES
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UnsupportedError
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import METHODS, Scheme

# Rows of 80 and 100 fill neither groups nor bytes; rows of 256 are llama.cpp's.
RAGGED: dict[str, Any] = {
    "hidden_size": 80,
    "intermediate_size": 100,
    "num_attention_heads": 4,
    "head_dim": 20,
    "vocab_size": 161,
}
ROUND: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 288}


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("ragged"), "llama", **RAGGED)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("even"), "qwen2", **ROUND)


@pytest.mark.parametrize(
    "scheme",
    [
        *map(ScaleMin, (3, 4, 5, 6)),
        IntegerScheme(4, 32),
        IntegerScheme(8, -1),
        IntegerScheme(4, 32, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("columns", [32, 70, 256, 896])
def test_the_plan_is_what_is_written(scheme: Scheme, columns: int) -> None:
    weights = np.random.default_rng(0).standard_normal((16, columns)).astype(np.float32)
    arrays = encode(METHODS["rtn"](weights, scheme))
    planned = stored_tensors("layer", (16, columns), scheme)
    assert [tensor.name for tensor in planned] == [f"layer.{kind}" for kind in arrays]
    for tensor, array in zip(planned, arrays.values(), strict=True):
        assert array.nbytes == tensor.nbytes
        if isinstance(scheme, ScaleMin):
            assert array.shape == tensor.shape
            assert array.dtype == DTYPES[tensor.dtype]
    assert has_shape_tensor(scheme) == isinstance(scheme, IntegerScheme)


def test_bytes_of_a_small_matrix() -> None:
    """5-bit codes of a row run on through its bytes; every row begins with a byte of its own."""
    weights = np.linspace(-1, 1, 70, dtype=np.float32)[None].repeat(2, 0)
    found = METHODS["rtn"](weights, ScaleMin(5))
    arrays = encode(found)
    assert {kind: array.shape for kind, array in arrays.items()} == {
        "weight_codes": (2, 44),
        "weight_scale_steps": (2, 3),
        "weight_minimum_steps": (2, 3),
        "weight_super_scale": (2, 1),
        "weight_super_minimum": (2, 1),
    }
    number = sum(int(code) << (5 * place) for place, code in enumerate(found.codes[1]))
    assert arrays["weight_codes"][1].tobytes() == number.to_bytes(44, "little")


@pytest.mark.parametrize("model", ["ragged", "even"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_what_was_written_is_read(
    bits: int, method: str, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    source = open_checkpoint(str(folder))
    options = {"scheme_name": "scale-min", "bits": bits, "embedding_bits": 4, "method": method}
    checkpoint = quantized(folder, tmp_path / "q", **options)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "dsconv"
    for name, parameter in checkpoint.parameters.items():
        if parameter.role is Role.VECTOR:
            assert checkpoint.scheme(name) is None
            np.testing.assert_array_equal(checkpoint.rows(name), source.rows(name))
            continue
        scheme = ScaleMin(4 if parameter.role is Role.EMBEDDING else bits)
        assert checkpoint.scheme(name) == scheme
        wanted = METHODS[method](source.rows(name), scheme).dequantize()
        np.testing.assert_array_equal(checkpoint.rows(name), wanted)
        np.testing.assert_array_equal(checkpoint.rows(name, 13, 31), wanted[13:31])
    logits = TorchModel.load(checkpoint).forward(random_tokens(16, 160))
    assert torch.isfinite(logits).all()


def test_scale_and_minimum_beside_the_integer_scheme(even: Path, tmp_path: Path) -> None:
    options = {"scheme_name": "scale-min", "bits": 3, "head_bits": 8, "embedding_bits": 8}
    checkpoint = quantized(even, tmp_path / "q", **options)
    assert checkpoint.scheme("lm_head.weight") == IntegerScheme(8, 32)
    assert checkpoint.scheme("model.embed_tokens.weight") == IntegerScheme(8, 32)
    assert checkpoint.scheme("model.layers.1.mlp.up_proj.weight") == ScaleMin(3)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "dsconv"
    assert "dequantize" not in config["quantization_config"]


def test_bits_per_weight_and_the_bytes_are_always_the_same(even: Path, tmp_path: Path) -> None:
    hashes = set()
    for threads in (1, 2):
        output = tmp_path / str(threads)
        quantized(even, output, scheme_name="scale-min", threads=threads, embedding_bits=4)
        hashes.add(folder_hash(output))
    assert len(hashes) == 1
    stored = load_file(tmp_path / "1" / "model.safetensors")
    total = sum(tensor.nbytes for tensor in stored.values())
    facts = json.loads((tmp_path / "1" / "dsconv.json").read_text())["facts"]
    count = open_checkpoint(str(even)).parameter_count
    assert facts["bits_per_weight"] == pytest.approx(8 * total / count)
    head = [tensor for name, tensor in stored.items() if name.startswith("lm_head")]
    assert 8 * sum(tensor.nbytes for tensor in head) / (160 * 256) == 4.5


@pytest.mark.parametrize("model", ["ragged", "even"])
def test_inspect_shows_it(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(model)
    quantized(folder, tmp_path / "q", scheme_name="scale-min", bits=5)
    outcome = call_main(monkeypatch, capsys, "inspect", tmp_path / "q", "--json")
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row for row in outcome.json["tensors"]}
    head = rows["lm_head.weight"]
    assert head["storage"] == "scale-min 5 bits"
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert head["size_bytes"] == sum(t.nbytes for n, t in stored.items() if n.startswith("lm_head"))


def test_onnx_refuses_it(even: Path, tmp_path: Path) -> None:
    checkpoint = quantized(even, tmp_path / "q", scheme_name="scale-min")
    with pytest.raises(UnsupportedError, match="no ONNX operator reads scale and minimum"):
        export_onnx(checkpoint, ExportOptions(), tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_the_export_command_refuses_it(
    even: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(even, tmp_path / "q", scheme_name="scale-min")
    outcome = call_main(monkeypatch, capsys, "export", tmp_path / "q", "-o", tmp_path / "onnx")
    assert_refused(outcome, 4, "scale and minimum", "--scheme integer")


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ({"num_bits": 7}, InputError, "bits: 7"),
        ({"num_bits": 8}, InputError, "bits: 8"),
        ({"group_size": 64}, UnsupportedError, "groups of 64"),
        ({"group_size": None}, InputError, "group_size"),
        ({"num_bits": 5}, InputError, "weight_codes"),
        ({"type": "scale-max"}, UnsupportedError, "scale-max"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    weights: dict[str, Any], error: type[Exception], words: str, even: Path, tmp_path: Path
) -> None:
    quantized(even, tmp_path / "q", scheme_name="scale-min")
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(weights)
    path.write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        open_checkpoint(str(tmp_path / "q"))


@pytest.mark.parametrize(
    "kind",
    [
        "weight_codes",
        "weight_scale_steps",
        "weight_minimum_steps",
        "weight_super_scale",
        "weight_super_minimum",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "too short", "other type"])
def test_damaged_tensors_are_named(kind: str, damage: str, even: Path, tmp_path: Path) -> None:
    quantized(even, tmp_path / "q", scheme_name="scale-min")
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.up_proj.{kind}"
    if damage == "missing":
        del tensors[name]
    elif damage == "too short":
        tensors[name] = np.ascontiguousarray(tensors[name][:-1])
    else:
        tensors[name] = tensors[name].astype(np.int32)
    save_file(tensors, path)
    with pytest.raises((InputError, UnsupportedError), match=kind):
        open_checkpoint(str(tmp_path / "q"))
