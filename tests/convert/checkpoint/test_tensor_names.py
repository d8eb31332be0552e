"""Names with prefixes, buffers beside weights, heads of their own: what people's tools leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command_line import dsconv
from numpy.typing import NDArray
from small_models import LLAMA, gpt2_tokenizer_json, random_tensors, small_config, write_model

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, UnsupportedError
from dsconv.runtime.sessions.load import load

Tensors = dict[str, NDArray[Any]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def opened(folder: Path, tensors: Tensors, **changes: Any) -> Checkpoint:
    return open_checkpoint(str(write_model(folder, small_config(**changes), tensors)))


def assert_reads(checkpoint: Checkpoint, expected: Tensors) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.rows(name), array.astype(np.float32))


def bare(name: str) -> str:
    return name.removeprefix("model.")


def inside(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (bare, "saved without its head"),
        (lambda name: f"base_model.model.{name}", "'base_model.model.'"),
        (lambda name: f"_orig_mod.{name}", "torch.compile"),
        (lambda name: f"module.{name}", "DataParallel"),
        (lambda name: f"module._orig_mod.{name}", "torch.compile"),
        (lambda name: f"language_model.{name}", "a multimodal model"),
        (inside, "a multimodal model"),
        (lambda name: name.replace("model.", "transformer.", 1), "'transformer.'"),
        (lambda name: f"transformer.{name}", "'transformer.'"),
        (lambda name: f"model.{name}", "'model.'"),  # of a LightningModule
        (lambda name: f"student.{name}", "some wrapper"),
        (lambda name: name.replace("mlp.", "_orig_mod.mlp._checkpoint_wrapped_module."), "'_orig"),
        (lambda name: f"model.{name}" if name == HEAD else name, "before 'lm_head'"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_prefix_before_all_names(
    tmp_path: Path, rename: Callable[[str], str], words: str, tied: bool
) -> None:
    expected = random_tensors(small_config(tie_word_embeddings=tied))
    stored = {rename(name): array for name, array in expected.items()}
    checkpoint = opened(tmp_path / "m", stored, tie_word_embeddings=tied)
    assert_reads(checkpoint, expected)
    if stored.keys() != expected.keys():
        (note,) = checkpoint.notes
        assert words in note


def test_a_bare_model_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = small_config(**LLAMA, tie_word_embeddings=True)
    expected = random_tensors(config)
    checkpoint = opened(
        tmp_path / "m", {bare(name): a for name, a in expected.items()}, **LLAMA,
        tie_word_embeddings=True,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="float32")
    for name, tensor in theirs.state_dict().items():
        if name != HEAD:
            np.testing.assert_array_equal(checkpoint.rows(name), tensor.numpy())


def test_a_quantized_checkpoint_with_a_prefix(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = opened(tmp_path / "m", random_tensors(small_config()))
    quantize_checkpoint(source, QuantizeOptions(), tmp_path / "q")
    plain = open_checkpoint(str(tmp_path / "q")).rows(UP)
    path = tmp_path / "q" / "model.safetensors"
    save_file({f"module.{name}": array for name, array in load_file(path).items()}, path)
    np.testing.assert_array_equal(open_checkpoint(str(tmp_path / "q")).rows(UP), plain)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_model_that_is_there_twice_is_refused(tmp_path: Path, prefix: str) -> None:
    tensors = random_tensors(small_config())
    twice = tensors | {f"{prefix}{name}": array for name, array in tensors.items()}
    with pytest.raises(InputError, match=r"would both be|is not part of"):
        opened(tmp_path / "m", twice)


def test_two_wrapped_models_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    two = {f"{who}.{name}": array for name, array in tensors.items() for who in ("ema", "student")}
    with pytest.raises(InputError, match="could both be it"):
        opened(tmp_path / "m", two)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_lora_that_is_not_merged_is_refused_with_the_cure(tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}{name}": array for name, array in random_tensors(small_config()).items()}
    module = f"{prefix}{UP.removesuffix('.weight')}"
    tensors[f"{module}.base_layer.weight"] = tensors.pop(f"{module}.weight")
    for kind in ("lora_A", "lora_B"):
        tensors[f"{module}.{kind}.default.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(UnsupportedError, match="adapter of peft") as caught:
        opened(tmp_path / "m", tensors)
    assert "merge" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,)),
        ("model.rotary_emb.inv_freq", (8,)),
        ("model.layers.0.attn.masked_bias", ()),
        ("model.layers.0.attn.bias", (1, 1, 4, 4)),
        ("model.embeddings.position_ids", (1, 16)),
        ("model.layers.0.norm.num_batches_tracked", ()),
    ],
)
def test_buffers_without_weights_are_ignored(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    tensors = random_tensors(small_config())
    checkpoint = opened(tmp_path / "m", {**tensors, name: np.ones(shape, np.float32)})
    assert_reads(checkpoint, tensors)
    assert checkpoint.notes == ()


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight_fake_quant.scale",
        "model.layers.0.mlp.up_proj.weight_quantizer._amax",
        "model.layers.0.self_attn.k_scale",
    ],
)
def test_what_tells_how_a_model_was_meant_to_run_is_named(tmp_path: Path, name: str) -> None:
    tensors = random_tensors(small_config())
    checkpoint = opened(tmp_path / "m", {**tensors, name: np.ones(1, np.float32)})
    assert_reads(checkpoint, tensors)
    (note,) = checkpoint.notes
    assert name in note


@pytest.mark.parametrize(
    "name", ["model.layers.0.attn.bias", "score.weight", "model.layers.0.mlp.up_proj.bias", "x"]
)
def test_anything_else_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tensors = {**random_tensors(small_config()), name: np.ones(4, np.float32)}
    with pytest.raises(InputError, match=name):
        opened(tmp_path / "m", tensors)


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "bitsandbytes", "unheard"])
def test_plain_weights_are_read_whatever_config_says_about_them(
    tmp_path: Path, method: str
) -> None:
    tensors = random_tensors(small_config())
    checkpoint = opened(tmp_path / "m", tensors, quantization_config={"quant_method": method})
    assert_reads(checkpoint, tensors)
    assert "quantization_config" not in checkpoint.config
    (note,) = checkpoint.notes
    assert method in note


@pytest.mark.parametrize("ending", ["qweight", "weight_packed", "weight_scale_inv"])
def test_quantized_weights_under_a_silent_config(tmp_path: Path, ending: str) -> None:
    tensors = random_tensors(small_config())
    tensors[f"{UP.removesuffix('.weight')}.{ending}"] = tensors.pop(UP)
    with pytest.raises(InputError, match="has no quantization_config"):
        opened(tmp_path / "m", tensors)


def tied(**more: NDArray[Any]) -> Tensors:
    tensors = random_tensors(small_config(tie_word_embeddings=True))
    return tensors | {HEAD: more.get("head", tensors[EMBEDDING])}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_stored_head_that_equals_the_embedding_is_ignored(tmp_path: Path, dtype: Any) -> None:
    tensors = tied()
    tensors[HEAD] = tensors[EMBEDDING].astype(dtype)
    checkpoint = opened(tmp_path / "m", tensors, tie_word_embeddings=True)
    assert HEAD not in checkpoint.parameters
    assert checkpoint.notes == ()


@pytest.mark.parametrize("row", [0, 263])
def test_a_stored_head_that_differs_is_used(tmp_path: Path, row: int) -> None:
    tensors = tied()
    tensors[HEAD] = tensors[EMBEDDING].copy()
    tensors[HEAD][row, 3] += 1
    checkpoint = opened(tmp_path / "m", tensors, tie_word_embeddings=True)
    assert_reads(checkpoint, tensors)
    assert checkpoint.config["tie_word_embeddings"] is False
    (note,) = checkpoint.notes
    assert "the stored head is used" in note
    quantize_checkpoint(checkpoint, QuantizeOptions(bits=8), tmp_path / "q")
    again = open_checkpoint(str(tmp_path / "q"))
    assert again.config["tie_word_embeddings"] is False
    assert again.notes == ()


def test_a_head_that_differs_in_a_quantized_checkpoint(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = opened(
        tmp_path / "m", random_tensors(small_config(tie_word_embeddings=True)),
        tie_word_embeddings=True,
    )  # fmt: skip
    quantize_checkpoint(source, QuantizeOptions(head_bits=16, embedding_bits=16), tmp_path / "q")
    path = tmp_path / "q" / "model.safetensors"
    held = load_file(path)
    head = held[EMBEDDING] * 2
    save_file({**held, HEAD: head}, path)
    checkpoint = open_checkpoint(str(tmp_path / "q"))
    np.testing.assert_array_equal(checkpoint.rows(HEAD), head.astype(np.float32))


def test_a_head_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lm_head.*\[250, 64\].*\[264, 64\]"):
        opened(tmp_path / "m", tied(head=np.ones((250, 64), np.float32)), tie_word_embeddings=True)


def test_a_head_saved_empty_is_none(tmp_path: Path) -> None:
    """Sharded training (DeepSpeed) leaves it so."""
    checkpoint = opened(
        tmp_path / "m", tied(head=np.ones((0, 64), np.float32)), tie_word_embeddings=True
    )
    assert HEAD not in checkpoint.parameters


def test_a_matrix_saved_empty_is_told(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    tensors[UP] = np.ones((0,), np.float32)
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "m", tensors)
    assert "saved empty" in caught.value.hint


def test_a_missing_head_is_told_with_the_reason_and_its_cure_works(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    del tensors[HEAD]
    with pytest.raises(InputError, match="tie_word_embeddings is false") as caught:
        opened(tmp_path / "m", tensors)
    assert "set tie_word_embeddings to true" in caught.value.hint
    assert opened(tmp_path / "cured", tensors, tie_word_embeddings=True).parameters


@pytest.mark.parametrize("rows", [260, 280])
def test_a_vocabulary_of_another_size_is_told_with_its_cure(tmp_path: Path, rows: int) -> None:
    tensors = random_tensors(small_config(vocab_size=rows))
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "m", tensors)
    assert f"set vocab_size to {rows}" in caught.value.hint
    assert opened(tmp_path / "cured", tensors, vocab_size=rows).parameters


def test_weights_of_another_layout_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    fused = UP.replace("up_proj", "gate_up_proj")
    tensors[fused] = tensors.pop(UP)
    with pytest.raises(InputError, match=r"up_proj.* is missing, while .*gate_up_proj.* is there"):
        opened(tmp_path / "m", tensors)


def test_layers_beyond_those_of_the_config(tmp_path: Path) -> None:
    tensors = random_tensors(small_config(num_hidden_layers=3))
    with pytest.raises(InputError, match=r"model\.layers\.2\..* is not part of") as caught:
        opened(tmp_path / "m", tensors)
    assert "num_hidden_layers 2" in caught.value.hint


@pytest.mark.parametrize("form", ["onnx", "native", "compressed-tensors", "gguf"])
def test_weights_in_64_bits_are_exported_as_what_is_computed(tmp_path: Path, form: str) -> None:
    tensors = {n: a.astype(np.float64) for n, a in random_tensors(small_config()).items()}
    write_model(tmp_path / "m", small_config(), tensors)
    (tmp_path / "m" / "tokenizer.json").write_text(gpt2_tokenizer_json())
    model = tmp_path / "m"
    if form == "compressed-tensors":
        quantize_checkpoint(open_checkpoint(str(model)), QuantizeOptions(), tmp_path / "q")
        model = tmp_path / "q"
    output = tmp_path / {"native": "a.dsq", "gguf": "a.gguf"}.get(form, "a")
    outcome = dsconv("export", model, "--format", form, "-o", output)
    assert outcome.code == 0, outcome.err
    tokens = [1, 5, 9, 200]
    mine = load(str(output)).session.score(tokens).copy()
    np.testing.assert_allclose(mine, load(str(model)).session.score(tokens), atol=0.02)
