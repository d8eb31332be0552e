"""Int8 weights and activations: whole checkpoints, in other readers too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from logits import largest_difference, mean_divergence, random_tokens
from outputs import folder_hash
from reference_models import tiny_checkpoint, tiny_model
from safetensors.numpy import load_file

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.quantization_config import read_quantization_config
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.forward.torch_ops import TorchModel, round_tokens
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.journal import Journal
from dsconv.convert.quantize.options import (
    QuantizeOptions,
    default_embedding_bits,
    default_method,
    default_prefix_correction,
)
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.writer import QuantizedWriter
from dsconv.errors import UnsupportedError, UsageError
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.int8_rows import Int8Rows, Int8RowsMatrix, simulate_rows
from dsconv.quant.schemes import Floats

WINDOWS = [random_tokens(48, 160, seed) for seed in range(12)]
TOKENS = random_tokens(40, 160, 99)
INT8: dict[str, Any] = {"bits": 8, "activations": "int8", "prefix_correction": 0.0}


def quantized(source: Path, output: Path, method: str = "gptq", **options: Any) -> Checkpoint:
    chosen = QuantizeOptions(**{**INT8, "method": method, **options})
    windows = WINDOWS if method == "gptq" else []
    quantize_checkpoint(
        open_checkpoint(str(source)), chosen, output, preparation=GivenWindows(windows)
    )
    return open_checkpoint(str(output))


def outlier_checkpoint(folder: Path, **config: Any) -> Path:
    """A model whose norms and up projections make a few channels a hundred times as loud."""
    model = tiny_model("llama", **config)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[3::31] *= 100
            for part in (*layer.self_attn.children(), layer.mlp.gate_proj, layer.mlp.up_proj):
                if part.weight.shape[1] == len(norm.weight) and part is not layer.self_attn.o_proj:
                    part.weight[:, 3::31] /= 100
            layer.mlp.up_proj.weight[5::29] *= 100
            layer.mlp.down_proj.weight[:, 5::29] /= 100
            if layer.mlp.up_proj.bias is not None:
                layer.mlp.up_proj.bias.copy_(torch.linspace(-1, 1, len(layer.mlp.up_proj.bias)))
                layer.mlp.up_proj.bias[7] = 0
                layer.mlp.gate_proj.bias.mul_(0.01)
    model.save_pretrained(folder)
    return folder


def divergence(source: Path, checkpoint: Checkpoint) -> float:
    reference = TorchModel.load(open_checkpoint(str(source))).forward(TOKENS)
    return mean_divergence(reference.numpy(), TorchModel.load(checkpoint).forward(TOKENS).numpy())


# ---------------------------------------------------------------- the scheme


def test_largest_weight_is_code_127() -> None:
    weights = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)
    weights[4] = 0
    found = Int8Rows().round_to_nearest(weights)
    assert (found.scales > 0).all()
    assert np.delete(np.abs(found.codes.astype(int)).max(1), 4).tolist() == [127] * 8
    assert np.abs(found.dequantize() - weights).max() <= found.scales.max() / 2 * 1.0001


def test_gptq_of_uncorrelated_inputs_rounds_to_nearest() -> None:
    weights = np.random.default_rng(1).standard_normal((7, 300)).astype(np.float32)
    weights[3] = 0
    factor = factorize([np.diag(np.linspace(1, 5, 300)).astype(np.float32)], Int8Rows())
    found = gptq(weights, factor, Int8Rows())
    assert isinstance(found, Int8RowsMatrix)
    wanted = Int8Rows().round_to_nearest(weights)
    np.testing.assert_array_equal(found.scales, wanted.scales)
    np.testing.assert_array_equal(found.codes, wanted.codes)


def test_gptq_loses_less_than_rounding() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((500, 20)) @ rng.standard_normal((20, 200))
    inputs = (inputs + 0.1 * rng.standard_normal(inputs.shape)).astype(np.float32)
    weights = rng.standard_normal((30, 200)).astype(np.float32)
    moment = inputs.T @ inputs / len(inputs)
    losses = []
    for blocks in ([moment], [moment[:80, :80], moment[80:, 80:]]):
        found = gptq(weights, factorize(blocks, Int8Rows()), Int8Rows())
        assert isinstance(found, Int8RowsMatrix)
        losses.append(np.square(inputs @ (found.dequantize() - weights).T).sum())
    rounded = np.square(
        inputs @ (Int8Rows().round_to_nearest(weights).dequantize() - weights).T
    ).sum()
    assert losses[0] < losses[1] < 0.5 * rounded


def test_torch_rounds_tokens_as_numpy_does() -> None:
    values = np.random.default_rng(3).standard_normal((3, 50, 70)).astype(np.float32)
    values[0, 5] = 0
    values[1] *= 1e30
    values[2] *= 1e-30
    wanted = simulate_rows(values.reshape(-1, 70)).reshape(values.shape)
    np.testing.assert_array_equal(round_tokens(torch.from_numpy(values)).numpy(), wanted)
    half = round_tokens(torch.from_numpy(values[1]).bfloat16())
    assert half.dtype is torch.bfloat16


# ---------------------------------------------------------------- in transformers


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("head_bits", [8, 16])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_transformers_reads_the_same_codes(
    family: str, head_bits: int, method: str, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "model", family)
    checkpoint = quantized(source, tmp_path / "int8", method, head_bits=head_bits)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "int8", dtype=torch.float32
    ).eval()
    files = load_file(tmp_path / "int8" / "model.safetensors")
    codes = {name: value for name, value in files.items() if value.dtype == np.int8}
    assert len(codes) == 14
    state = model.state_dict()
    for name, value in codes.items():
        assert state[name].dtype is torch.int8
        np.testing.assert_array_equal(state[name].numpy(), value)
        scale = state[f"{name}_scale"].numpy()
        np.testing.assert_array_equal(scale, files[f"{name}_scale"])
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    ours = TorchModel.load(checkpoint)
    # They divide the largest activation by 127.5, so their rounding errors are others than ours,
    # but no larger: twice the distance from what comes without rounding the activations.
    exact = TorchModel(checkpoint.decoder, ours._weights, lambda name: False, "cpu").forward(TOKENS)
    distance = float((ours.forward(TOKENS) - exact).square().mean())
    assert distance > 0
    assert float(np.square(ours.forward(TOKENS).numpy() - theirs).mean()) <= 4 * distance


def test_transformers_computes_the_same_where_it_divides_by_127(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that differs is their 127.5."""
    from compressed_tensors.quantization.lifecycle import forward

    def scales(value: torch.Tensor, **rest: Any) -> Any:
        scale = value.abs().amax(-1, keepdim=True) / 127
        return scale, torch.zeros_like(scale, dtype=torch.int8)

    monkeypatch.setattr(forward, "compute_dynamic_scales_and_zp", scales)
    source = tiny_checkpoint(tmp_path / "model", "llama")
    checkpoint = quantized(source, tmp_path / "int8")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "int8", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0]
    assert largest_difference(TorchModel.load(checkpoint).forward(TOKENS), theirs) <= 1e-4


# ---------------------------------------------------------------- smoothing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mlp_bias", [False, True])
def test_smoothing_leaves_the_function_as_it_was(
    dtype: str, mlp_bias: bool, tmp_path: Path
) -> None:
    """What a gain or a row is divided by, the next matrix is multiplied by, up to its int8 step."""
    source = outlier_checkpoint(tmp_path / "float32", mlp_bias=mlp_bias)
    if dtype == "bfloat16":
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        source = tmp_path / "model"
        model.save_pretrained(source)
    before = open_checkpoint(str(source))
    after = quantized(source, tmp_path / "int8")
    smoothed = 0
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("post_attention_layernorm", ["mlp.gate_proj"]),
        ):
            name = f"{prefix}.{norm}.weight"
            scales = before.rows(name) / after.rows(name)
            smoothed += bool((scales != 1).any())
            for reader in readers:
                assert_close_after(before, after, f"{prefix}.{reader}.weight", scales)
        up, down = f"{prefix}.mlp.up_proj", f"{prefix}.mlp.down_proj.weight"
        codes = after.quantized_rows(f"{up}.weight", 0, 96)
        assert isinstance(codes, Int8RowsMatrix)
        norm_scales = before.rows(f"{prefix}.post_attention_layernorm.weight")
        norm_scales /= after.rows(f"{prefix}.post_attention_layernorm.weight")
        plain = Int8Rows().round_to_nearest(before.rows(f"{up}.weight") * norm_scales)
        scales = (plain.scales / codes.scales)[:, 0]
        smoothed += bool((scales != 1).any())
        assert_close_after(before, after, down, scales)
        if mlp_bias:
            bias = after.rows(f"{up}.bias")
            np.testing.assert_allclose(bias * scales, before.rows(f"{up}.bias"), rtol=1e-6)
    assert smoothed == 6


def assert_close_after(before: Checkpoint, after: Checkpoint, name: str, scales: Floats) -> None:
    """Every row within a few steps: error feedback moves weights by more than half a step."""
    wanted = before.rows(name) * scales
    found = after.quantized_rows(name, 0, len(wanted))
    assert isinstance(found, Int8RowsMatrix)
    np.testing.assert_allclose(found.scales[:, 0] * 127, np.abs(wanted).max(1), rtol=1e-5)
    steps = (found.dequantize() - wanted) / found.scales
    assert np.square(steps).mean() < 1


def test_smoothing_saves_a_model_with_loud_channels(tmp_path: Path) -> None:
    source = outlier_checkpoint(tmp_path / "model")
    plain = divergence(source, quantized(source, tmp_path / "plain", "rtn", head_bits=16))
    smooth = divergence(source, quantized(source, tmp_path / "smooth", head_bits=16))
    assert smooth < 0.1 * plain


def test_loud_up_channels_with_biases_are_smoothed(tmp_path: Path) -> None:
    source = outlier_checkpoint(tmp_path / "model", mlp_bias=True)
    plain = divergence(source, quantized(source, tmp_path / "plain", "rtn", head_bits=16))
    smooth = divergence(source, quantized(source, tmp_path / "smooth", head_bits=16))
    assert smooth < 0.2 * plain


def test_huge_query_and_key_biases(tmp_path: Path) -> None:
    """They are added after the product, in float, and stay what they were."""
    source = tiny_checkpoint(tmp_path / "model", "qwen2")
    checkpoint = quantized(source, tmp_path / "int8", head_bits=16)
    before = open_checkpoint(str(source))
    for name in before.parameters:
        if name.endswith("bias"):
            assert np.abs(before.rows(name)).max() > 100
            np.testing.assert_array_equal(checkpoint.rows(name), before.rows(name))
    weights_only = quantize_checkpoint(
        before, QuantizeOptions(bits=8, group_size=-1, head_bits=16), tmp_path / "weights"
    )
    assert weights_only.parameters == before.parameter_count
    limit = divergence(source, open_checkpoint(str(tmp_path / "weights")))
    assert divergence(source, checkpoint) < 10 * limit + 1e-3


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("prefix_correction", [0.0, 0.5])
def test_the_bytes_do_not_depend_on_the_threads(prefix_correction: float, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2", hidden_size=128, intermediate_size=1280)
    for threads in (1, 2):
        options = {"threads": threads, "prefix_correction": prefix_correction}
        quantized(source, tmp_path / str(threads), **options)
    assert folder_hash(tmp_path / "1") == folder_hash(tmp_path / "2")


@pytest.mark.parametrize("call", ["write_quantized", "rewrite"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(
    call: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "due", lambda journal: True)
    source = outlier_checkpoint(tmp_path / "model", mlp_bias=True)
    quantized(source, tmp_path / "whole")
    work, left = getattr(QuantizedWriter, call), count

    def counted(writer: QuantizedWriter, *arguments: Any) -> None:
        nonlocal left
        work(writer, *arguments)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(QuantizedWriter, call, counted)
        with pytest.raises(KeyboardInterrupt):
            quantized(source, tmp_path / "cut")
    quantized(source, tmp_path / "cut")
    assert folder_hash(tmp_path / "cut") == folder_hash(tmp_path / "whole")


# ---------------------------------------------------------------- config, options, other formats


def test_config_names_both_formats(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    checkpoint = quantized(source, tmp_path / "mixed", "search")
    config = checkpoint.config["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert "dequantize" not in config
    first, second = config["config_groups"].values()
    assert (first["format"], second["format"]) == ("int-quantized", "pack-quantized")
    assert first["input_activations"]["dynamic"] is True
    assert second["input_activations"] is None
    alone = quantized(source, tmp_path / "alone", "rtn", head_bits=16).config
    assert alone["quantization_config"]["format"] == "int-quantized"
    assert alone["quantization_config"]["config_groups"]["group_0"]["targets"] == ["Linear"]
    kinds = {row.name: row.storage for row in describe(str(tmp_path / "mixed")).tensors}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "int8 row, inputs int8"
    assert kinds["lm_head.weight"] == "int8 g32 symmetric"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("weights", "num_bits", 4),
        ("weights", "symmetric", False),
        ("weights", "strategy", "group"),
        ("weights", "type", "float"),
        ("input_activations", "dynamic", False),
        ("input_activations", "strategy", "tensor"),
        ("input_activations", "num_bits", 4),
    ],
)
def test_other_activations_are_refused(part: str, key: str, value: Any, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    quantized(source, tmp_path / "int8", "rtn", head_bits=16)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    config["config_groups"]["group_0"][part][key] = value
    with pytest.raises(UnsupportedError, match=rf"{part}: {key} {value!r}"):
        read_quantization_config(ConfigReader(config, "config.json"))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"embedding_bits": 8},
        {"tuning_epochs": 1, "method": "gptq"},
        {"scheme_name": "scale-min", "bits": 6},
        {"scheme_name": "scale-min", "bits": 8},
        {"symmetric": False},
        {"activations": "int4"},
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="activations"):
        QuantizeOptions(**{**INT8, **options})


def test_embedding_and_head_are_refused_by_recipe(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    with pytest.raises(UsageError, match="w8a8 for lm_head"):
        quantized(source, tmp_path / "int8", "rtn", allocation={"lm_head": "w8a8"})


def test_some_matrices_may_keep_float_activations(tmp_path: Path) -> None:
    source = outlier_checkpoint(tmp_path / "model")
    down = "model.layers.0.mlp.down_proj"
    checkpoint = quantized(source, tmp_path / "int8", allocation={down: "int8-g32"})
    assert not checkpoint.rounds_inputs(f"{down}.weight")
    assert checkpoint.rounds_inputs("model.layers.1.mlp.down_proj.weight")
    assert divergence(source, checkpoint) < 0.01


def test_the_default_method_calibrates() -> None:
    for can_write in (False, True):
        assert default_method(8, "int8", calibrates=False, can_write=can_write) == "gptq"
        assert default_method(8, "float", calibrates=False, can_write=can_write) == "search"
        assert default_method(8, "float", calibrates=True, can_write=can_write) == "gptq"
    assert default_method(4, "float", calibrates=False, can_write=True) == "gptq"
    assert default_method(4, "float", calibrates=False, can_write=False) == "search"
    assert default_embedding_bits("gptq", "integer", 8, "int8") == 16
    assert default_prefix_correction(8) == 0
    assert default_prefix_correction(4) > 0


def test_onnx_export_says_what_to_do(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    checkpoint = quantized(source, tmp_path / "int8", "rtn")
    with pytest.raises(UnsupportedError, match="int8 activations are not exported") as failure:
        export_onnx(checkpoint, ExportOptions(), tmp_path / "onnx")
    assert "--bits 8" in str(failure.value.hint)
