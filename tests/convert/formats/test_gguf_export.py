"""GGUF output: blocks against the gguf package, whole files against our reader and llama.cpp."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from command_line import assert_refused, call_main
from gguf import GGMLQuantizationType as Kind
from gguf_models import metadata_of, tiny_file
from numpy.typing import NDArray
from outputs import quantized
from places import data_file, needs_shared_data
from processes.llama_cpp_process import next_token_log_probabilities
from real_tokenizers import AWKWARD
from small_models import (
    BOS,
    EOS,
    LLAMA,
    QWEN3,
    VOCABULARY,
    gpt2_checkpoint,
    gpt2_tokenizer_json,
)
from tokenizers import Tokenizer

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.gguf import export as gguf_export
from dsconv.convert.formats.gguf.blocks import block_type, pack
from dsconv.convert.formats.gguf.container import read_header
from dsconv.convert.formats.gguf.export import GgufResult, export_gguf
from dsconv.convert.formats.gguf.write_tokenizer import TextSettings, tokenizer_keys
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, OutputError, UnsupportedError
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import METHODS, WHOLE_ROW, QuantizedMatrix, Scheme
from dsconv.runtime.sessions.torch_reference import TorchSession

SETTINGS = TextSettings(BOS, (EOS,), None, True, "{{ bos_token }}")


# ---------------------------------------------------------------- blocks


def random_quantized(scheme: Scheme, rows: int, columns: int) -> QuantizedMatrix:
    """Any numbers the scheme allows, the extremes among them; scales of 11 significant bits."""
    rng = np.random.default_rng(columns)
    groups = scheme.groups(columns)
    codes = rng.integers(0, scheme.max_code + 1, (rows, columns), np.uint8)
    codes[0], codes[1] = 0, scheme.max_code
    if isinstance(scheme, ScaleMin):
        steps = rng.integers(0, 64, (2, rows, groups), np.uint8)
        steps[:, 0], steps[:, 1] = 0, 63
        units = rng.uniform(0, 0.01, (2, rows, scheme.super_blocks(columns))).astype(np.float16)
        return ScaleMinMatrix(codes, steps[0], steps[1], units[0], units[1], scheme)
    assert isinstance(scheme, IntegerScheme)
    scales = rng.normal(0, 0.1, (rows, groups)).astype(np.float16)
    zeros = None
    if not scheme.symmetric:
        zeros = rng.integers(0, scheme.max_code + 1, (rows, groups), np.uint8)
    return IntegerMatrix(codes, scales, zeros, scheme)


def as_gguf_reads(quantized: QuantizedMatrix) -> tuple[NDArray[np.float32], float]:
    """-> (weights, the error that `pack` admits)"""
    packed = pack(quantized)
    kind = Kind[block_type(quantized.scheme, quantized.codes.shape[1]).name]
    return np.asarray(gguf.quants.dequantize(packed.blocks, kind), np.float32), packed.error


@pytest.mark.parametrize(
    ("scheme", "columns", "name"),
    [
        (IntegerScheme(4, 32), 96, "Q4_0"),
        (IntegerScheme(4, 64), 576, "Q4_0"),
        (IntegerScheme(4, 128), 256, "Q4_0"),
        (IntegerScheme(4, WHOLE_ROW), 160, "Q4_0"),
        (IntegerScheme(8, 32), 96, "Q8_0"),
        (IntegerScheme(8, WHOLE_ROW), 64, "Q8_0"),
        (ScaleMin(3), 512, "Q4_K"),
        (ScaleMin(4), 256, "Q4_K"),
        (ScaleMin(5), 768, "Q5_K"),
    ],
)
def test_blocks_hold_the_very_weights(scheme: Scheme, columns: int, name: str) -> None:
    assert block_type(scheme, columns).name == name
    original = random_quantized(scheme, 7, columns)
    weights, error = as_gguf_reads(original)
    np.testing.assert_array_equal(weights, original.dequantize())
    assert error == 0


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    ("scheme", "columns", "name"),
    [
        (ScaleMin(3), 896, "Q4_1"),
        (ScaleMin(4), 576, "Q4_1"),
        (ScaleMin(5), 96, "Q5_1"),
        (IntegerScheme(4, 64, symmetric=False), 192, "Q4_1"),
    ],
)
def test_blocks_with_float16_minima(scheme: Scheme, columns: int, name: str, method: str) -> None:
    """Exact where scales were chosen for it: found by search, or steps of short units."""
    assert block_type(scheme, columns).name == name
    values = np.random.default_rng(1).normal(0, 0.02, (40, columns)).astype(np.float32)
    original = METHODS[method](values, scheme)
    weights, error = as_gguf_reads(original)
    difference = float(np.abs(weights - original.dequantize()).max())
    if isinstance(scheme, ScaleMin) or method == "search":
        assert difference == error == 0
    else:
        assert 0 < difference <= error < 1e-4


@pytest.mark.parametrize(
    ("scheme", "columns", "words"),
    [
        (ScaleMin(6), 256, "6 bits"),
        (ScaleMin(4), 80, "no multiple of 32"),
        (IntegerScheme(4, 16), 48, "no multiple of 32"),
        (IntegerScheme(4, 16), 64, "no blocks of 16 weights"),
        (IntegerScheme(8, 16), 96, "no blocks of 16 weights"),
        (IntegerScheme(8, 32, symmetric=False), 64, "8 bits with zero points"),
    ],
)
def test_float16_is_the_last_resort(scheme: Scheme, columns: int, words: str) -> None:
    chosen = block_type(scheme, columns)
    assert chosen.name == "F16"
    assert words in chosen.reason
    original = random_quantized(scheme, 5, columns)
    weights, error = as_gguf_reads(original)
    exact = original.dequantize()
    assert float(np.abs(weights - exact).max()) == error
    assert error <= float(np.abs(exact).max()) * 2**-11


def test_rows_of_int8_keep_their_codes() -> None:
    """Their scales are float32, those of Q8_0 float16."""
    values = np.random.default_rng(2).normal(0, 0.02, (9, 96)).astype(np.float32)
    original = Int8Rows().round_to_nearest(values)
    weights, error = as_gguf_reads(original)
    half = original.scales.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(weights, original.codes * half)
    assert 0 < float(np.abs(weights - original.dequantize()).max()) <= error < 2e-5


def test_what_float16_cannot_hold_is_refused() -> None:
    scheme = IntegerScheme(4, 32, symmetric=False)
    codes, zeros = np.zeros((1, 32), np.uint8), np.full((1, 1), 15, np.uint8)
    with pytest.raises(UnsupportedError, match="float16"):
        pack(IntegerMatrix(codes, np.full((1, 1), 6e4, np.float16), zeros, scheme))


def test_reasons_are_given_where_bits_suggest_another_type() -> None:
    assert block_type(ScaleMin(4), 256).reason == ""
    assert "multiple of 256" in block_type(ScaleMin(4), 576).reason
    assert "3 bits" in block_type(ScaleMin(3), 256).reason
    assert "multiple of 256" in block_type(ScaleMin(3), 576).reason


# ---------------------------------------------------------------- whole files


def exported(source: Checkpoint, output: Path) -> tuple[GgufResult, Checkpoint]:
    result = export_gguf(source, SETTINGS, output)
    return result, open_checkpoint(str(output))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "llama int4": (LLAMA, {"bits": 4}, {"Q4_0"}),
    "llama int4 with biases, tied": (
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"bits": 4, "embedding_bits": 4, "symmetric": False},
        {"Q4_1"},
    ),
    "qwen2 int8": ({}, {"bits": 8, "embedding_bits": 8}, {"Q8_0"}),
    "qwen3 int4, rows": (QWEN3, {"bits": 4, "group_size": -1, "head_bits": 8}, {"Q4_0", "Q8_0"}),
    "llama scale-min 4": (
        {**LLAMA, "hidden_size": 256, "intermediate_size": 288},
        {"bits": 4, "scheme_name": "scale-min"},
        {"Q4_K", "Q4_1"},
    ),
    "qwen2 scale-min 5": (
        {"hidden_size": 256},
        {"bits": 5, "scheme_name": "scale-min", "embedding_bits": 5, "head_bits": 6},
        {"Q5_K", "Q5_1", "F16"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_holds_the_checkpoint(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, options, types = CASES[case]
    monkeypatch.setattr(gguf_export, "CHUNK_WEIGHTS", 1 << 11)  # several pieces per tensor
    source = quantized(gpt2_checkpoint(tmp_path / "float", **config), tmp_path / "codes", **options)
    result, read = exported(source, tmp_path / "out" / "model.gguf")
    assert types <= set(result.types)
    assert set(read.parameters) == set(source.parameters)
    for name, parameter in source.parameters.items():
        np.testing.assert_allclose(
            read.rows(name), source.rows(name), rtol=2**-11 if "F16" in types else 0, atol=0
        )
        if source.scheme(name) is None and len(parameter.shape) == 2:
            assert read.source.storage(name) == source.source.dtype(name)
    for attribute in vars(source.decoder.config):
        ours, theirs = (
            getattr(source.decoder.config, attribute),
            getattr(read.decoder.config, attribute),
        )
        assert theirs == pytest.approx(ours) if isinstance(ours, float) else theirs == ours
    before = (tmp_path / "out" / "model.gguf").read_bytes()
    export_gguf(source, SETTINGS, tmp_path / "out" / "model.gguf", overwrite=True)
    assert (tmp_path / "out" / "model.gguf").read_bytes() == before


def test_types_and_notes_are_reported(tmp_path: Path) -> None:
    source = quantized(
        gpt2_checkpoint(tmp_path / "float"),
        tmp_path / "codes",
        bits=8,
        symmetric=False,
        head_bits=4,
    )
    result = export_gguf(source, SETTINGS, tmp_path / "m.gguf")
    assert result.types == {"BF16": 1, "F32": 11, "F16": 14, "Q4_1": 1}
    (note,) = result.notes
    assert note.startswith("14 tensors as F16: GGUF has no blocks of 8 bits with zero points; ")
    assert "float16 changes a weight by at most" in note
    _, tensors = read_header(tmp_path / "m.gguf")
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    assert result.bits_per_weight == 8 * nbytes / source.parameter_count
    assert result.bytes_written == (tmp_path / "m.gguf").stat().st_size


def test_a_float_checkpoint_keeps_its_bits(tmp_path: Path) -> None:
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float", torch_dtype="bfloat16")))
    result, read = exported(source, tmp_path / "m.gguf")
    assert set(result.types) == {"BF16", "F32"}
    assert not result.notes
    for name in source.parameters:
        np.testing.assert_array_equal(read.rows(name), source.rows(name))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rope_scaling_comes_back(tmp_path: Path, scaling: dict[str, Any]) -> None:
    config = {**LLAMA, "rope_scaling": scaling, "rope_theta": 500000.0}
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float", **config)))
    _, read = exported(source, tmp_path / "m.gguf")
    assert read.decoder.config.rope == source.decoder.config.rope


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            "llama3",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "untruncated"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float", **config)))
    with pytest.raises(UnsupportedError, match=words):
        export_gguf(source, SETTINGS, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


# ---------------------------------------------------------------- tokenizers


@needs_shared_data
@pytest.mark.parametrize(
    ("folder", "pre"),
    [
        ("deepseek-r1-distill-qwen", "qwen2"),
        ("deepseek-r1-distill-llama", "llama-bpe"),
        ("deepseek-v3", "deepseek-v3"),
    ],
)
def test_real_tokenizers_are_expressed(folder: str, pre: str) -> None:
    text = data_file("tokenizers", folder, "tokenizer.json").read_bytes()
    expected = metadata_of(json.loads(text), pre)
    rows = len(expected["tokenizer.ggml.tokens"])
    settings = TextSettings(None, (3, 5), "<\uff5cend\u2581of\u2581sentence\uff5c>", True, None)
    keys = tokenizer_keys({"tokenizer.json": text}, rows, settings)
    types = keys.pop("tokenizer.ggml.token_type")
    assert {key: keys[key] for key in expected if key in keys} == {
        key: value for key, value in expected.items() if not key.endswith("token_type")
    }
    tokens = keys["tokenizer.ggml.tokens"]
    kinds = dict(zip(tokens, types, strict=True))
    assert kinds["<\uff5cUser\uff5c>"] == gguf.TokenType.CONTROL
    assert kinds[f"[PAD{rows - 1}]"] == gguf.TokenType.UNUSED
    if "<think>" in kinds:
        assert kinds["<think>"] == gguf.TokenType.USER_DEFINED
    assert tokens[keys["tokenizer.ggml.padding_token_id"]] == settings.pad_token
    assert keys["tokenizer.ggml.eos_token_id"] == 3
    assert keys["tokenizer.ggml.eot_token_id"] == 5
    assert "tokenizer.ggml.bos_token_id" not in keys


def test_text_settings_come_back(tmp_path: Path) -> None:
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float")))
    _, read = exported(source, tmp_path / "m.gguf")
    settings = json.loads(read.side_files["tokenizer_config.json"])
    assert settings["bos_token"] == "<s>"
    assert settings["eos_token"] == "</s>"
    assert settings["add_bos_token"] is True
    assert settings["chat_template"] == SETTINGS.chat_template
    theirs = Tokenizer.from_str(read.side_files["tokenizer.json"].decode())
    ours = Tokenizer.from_str(gpt2_tokenizer_json())
    for text in [*AWKWARD, "the thethe<s>then"]:
        expected = ours.encode(text, add_special_tokens=False).ids
        assert theirs.encode(text, add_special_tokens=False).ids == expected


def changed_tokenizer(change: str) -> bytes:
    content = json.loads(gpt2_tokenizer_json())
    if change == "split":
        content["pre_tokenizer"]["use_regex"] = False
    elif change == "normalizer":
        content["normalizer"] = {"type": "Lowercase"}
    elif change == "merges":
        content["model"]["merges"] = []
    elif change == "suffix":
        content["model"]["end_of_word_suffix"] = "</w>"
    elif change == "bytes":
        content["model"]["byte_fallback"] = True
    return json.dumps(content).encode()


@pytest.mark.parametrize("change", ["split", "normalizer", "merges", "suffix", "bytes"])
def test_a_tokenizer_without_a_name_is_refused(change: str) -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: .* is not supported") as caught:
        tokenizer_keys({"tokenizer.json": changed_tokenizer(change)}, VOCABULARY, SETTINGS)
    assert caught.value.hint


def test_a_missing_broken_or_foreign_tokenizer_is_named() -> None:
    for files, rows in (
        ({}, VOCABULARY),
        ({"tokenizer.json": b"{"}, VOCABULARY),
        ({"tokenizer.json": gpt2_tokenizer_json().encode()}, 100),
    ):
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            tokenizer_keys(files, rows, SETTINGS)


# ---------------------------------------------------------------- outputs


def test_a_folder_gets_a_manifest(tmp_path: Path) -> None:
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float")))
    export_gguf(source, SETTINGS, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dsconv.json",
        "model.gguf",
    ]
    manifest = json.loads((tmp_path / "out" / "dsconv.json").read_text())
    assert manifest["kind"] == "gguf"
    assert set(manifest["sha256"]) == {"model.gguf"}


def test_nothing_is_replaced_unasked_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(str(gpt2_checkpoint(tmp_path / "float")))
    output = tmp_path / "m.gguf"
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists"):
        export_gguf(source, SETTINGS, output)
    monkeypatch.setattr(gguf_export._GgufFile, "_packed", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_gguf(source, SETTINGS, output, overwrite=True)
    assert output.read_bytes() == b"mine"
    assert not (tmp_path / "m.gguf.partial").exists()
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        export_gguf(source, SETTINGS, tmp_path / "folder.gguf", overwrite=True)


def test_a_gguf_file_is_not_exported_again(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="GGUF file already"):
        export_gguf(open_checkpoint(str(tiny_file(tmp_path))), SETTINGS, tmp_path / "m.gguf")


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(gpt2_checkpoint(tmp_path / "float"), tmp_path / "codes", bits=4)
    output = tmp_path / "m.gguf"
    arguments = ("export", tmp_path / "codes", "--format", "gguf", "-o", output)
    outcome = call_main(monkeypatch, capsys, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["types"] == {"BF16": 1, "F32": 11, "Q4_0": 15}
    assert outcome.json["bytes_written"] == output.stat().st_size
    assert_refused(call_main(monkeypatch, capsys, *arguments), 6, "already exists")
    outcome = call_main(monkeypatch, capsys, *arguments, "--overwrite")
    assert outcome.code == 0
    assert "15 Q4_0" in outcome.err
    keys, _ = read_header(output)
    assert keys["tokenizer.ggml.bos_token_id"] == BOS
    assert keys["tokenizer.ggml.eos_token_id"] == EOS
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    verified = call_main(
        *(monkeypatch, capsys, "verify", output, "--reference", tmp_path / "codes"),
        *("--max-tokens", "64", "--window", "32", "--json"),
    )
    assert verified.json["kl"]["max"] < 1e-6


# ---------------------------------------------------------------- llama.cpp

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp (llama.cpp itself) is not installed: pip install xllamacpp",
)
TEXTS = ["the fox", "I'm then <s>1234 there", "今天 the 😀", "a\n\n  b\tthe"]
# float32 weights, but float16 in the cache of llama.cpp
FLOAT_LIMIT = 2e-5


def divergence(source: Checkpoint, file: Path) -> float:
    """Mean KL of llama.cpp to the torch reference of `source`, after the texts and their halves."""
    tokenizer = Tokenizer.from_str(gpt2_tokenizer_json())
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    prompts += [prompt[: len(prompt) // 2] for prompt in prompts]
    # texts are tokenized by llama.cpp, with its own BOS
    found = next_token_log_probabilities(file, [*TEXTS, *prompts[len(TEXTS) :]], VOCABULARY)
    session = TorchSession(source)
    total = 0.0
    for prompt, other in zip(prompts, found, strict=True):
        logits = session.score(prompt)[-1].astype(np.float64)
        reference = logits - np.logaddexp.reduce(logits)
        total += float((np.exp(reference) * (reference - other)).sum())
    return total / len(prompts)


@needs_llama_cpp
@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "attention_bias": True},
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {},
        QWEN3,
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 64,
            },
        },
    ],
    ids=["llama", "llama3.1", "qwen2", "qwen3", "yarn"],
)
def test_llama_cpp_computes_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    source = open_checkpoint(
        str(gpt2_checkpoint(tmp_path / "float", **{**config, "torch_dtype": "float32"}))
    )
    export_gguf(source, SETTINGS, tmp_path / "m.gguf")
    assert divergence(source, tmp_path / "m.gguf") < FLOAT_LIMIT


@needs_llama_cpp
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_runs_the_blocks(tmp_path: Path, case: str) -> None:
    """Its kernels round activations to 8 bits, which these random models feel: KL up to 0.02.

    A wrong layout gives more than 1.
    """
    config, options, _ = CASES[case]
    source = quantized(gpt2_checkpoint(tmp_path / "float", **config), tmp_path / "codes", **options)
    export_gguf(source, SETTINGS, tmp_path / "m.gguf")
    assert divergence(source, tmp_path / "m.gguf") < 0.04
