"""GGUF input: against the gguf package, transformers, real tokenizers, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_models import (
    BYTE_TOKENS,
    HEAD_DIM,
    HIDDEN,
    checkpoint_tensors,
    metadata,
    metadata_of,
    plain_tensors,
    tiny_file,
    write_gguf,
)
from hostile.gguf_documents import Document
from places import data_file, smollm2_path
from real_tokenizers import AWKWARD
from tokenizers import Tokenizer

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.gguf.container import read_header
from dsconv.convert.formats.gguf.read import open_gguf
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UnsupportedError

# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_checkpoint_comes_back(tmp_path: Path, arch: str) -> None:
    key_length = {"ARCH.attention.key_length": HEAD_DIM} if arch == "qwen3" else {}
    checkpoint = open_checkpoint(str(tiny_file(tmp_path, arch, **key_length)))
    original = checkpoint_tensors(arch)
    assert set(checkpoint.parameters) == set(original)
    for name, values in original.items():
        np.testing.assert_array_equal(checkpoint.rows(name), values, err_msg=name)
        np.testing.assert_array_equal(checkpoint.rows(name, 3, 40), values[3:40], err_msg=name)
        np.testing.assert_array_equal(checkpoint.rows(name, 33, 34), values[33:34], err_msg=name)
    assert checkpoint.rows("lm_head.weight", 5, 5).shape == (0, HIDDEN)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.config["rms_norm_eps"] == 1e-6


# ---------------------------------------------------------------- config


def test_end_tokens_are_collected(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, **{"tokenizer.ggml.eot_token_id": 5})
    files = open_gguf(path).side_files
    end = len(BYTE_TOKENS) + 1
    assert json.loads(files["generation_config.json"]) == {
        "bos_token_id": end - 1,
        "eos_token_id": [end, 5],
    }
    assert files == open_gguf(path).side_files


# ---------------------------------------------------------------- tokenizers


def rebuilt(keys: Mapping[str, Any]) -> tuple[dict[str, Any], Tokenizer]:
    from dsconv.convert.files.json_file import ConfigReader
    from dsconv.convert.formats.gguf.read_tokenizer import tokenizer_files

    rows = len(keys["tokenizer.ggml.tokens"])
    text = tokenizer_files(ConfigReader(keys, "x.gguf"), rows)["tokenizer.json"].decode()
    return json.loads(text), Tokenizer.from_str(text)


def without_offsets(stage: Any) -> Any:
    """Trimming of offsets changes no token."""
    if isinstance(stage, dict):
        return {k: without_offsets(v) for k, v in stage.items() if k != "trim_offsets"}
    return [without_offsets(item) for item in stage] if isinstance(stage, list) else stage


@pytest.mark.parametrize(
    ("folder", "pre"),
    [
        ("deepseek-r1-distill-qwen", "deepseek-r1-qwen"),
        ("deepseek-r1-distill-llama", "llama-bpe"),
        ("deepseek-v3", "deepseek-v3"),
    ],
)
def test_real_tokenizer_comes_back(folder: str, pre: str) -> None:
    path = data_file("tokenizers", folder, "tokenizer.json")
    original = json.loads(path.read_text(encoding="utf-8"))
    result, tokenizer = rebuilt(metadata_of(original, pre))
    assert without_offsets(result["pre_tokenizer"]) == without_offsets(original["pre_tokenizer"])
    if folder != "deepseek-v3":  # there an empty sequence of normalizers
        assert result["normalizer"] == original["normalizer"]
    real = Tokenizer.from_file(str(path))
    golden = json.loads(data_file("golden", "tokenizer_ids.json").read_text(encoding="utf-8"))
    cases = golden.get(folder, [])
    for case in cases:
        ids = tokenizer.encode(case["text"], add_special_tokens=False).ids
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == case["decoded"]
    for text in [*AWKWARD, *(case["text"] for case in golden["deepseek-v3"])]:
        expected = real.encode(text, add_special_tokens=False).ids
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == expected, text
        assert tokenizer.decode(ids) == real.decode(expected)


def test_sentencepiece_tokenizer_comes_back() -> None:
    """A real one with byte fallback, its merges expressed as scores."""
    path = data_file("models", "tinystories-656k", "tokenizer.json")
    original = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = original["model"]["vocab"]
    scores = dict.fromkeys(vocabulary, -1e6)
    for rank, merge in enumerate(original["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores[left + right] = max(scores[left + right], -float(rank))
    types = [6 if token.startswith("<0x") else 1 for token in vocabulary]
    types[:3] = [2, 3, 3]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(vocabulary),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [scores[token] for token in vocabulary],
    }
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    result, tokenizer = rebuilt(keys)
    assert result["normalizer"] == original["normalizer"]
    assert result["decoder"] == original["decoder"]
    real = Tokenizer.from_file(str(path))
    story = data_file("text", "tinystories", "train_sample_a.txt").read_text(encoding="utf-8")
    for text in [*AWKWARD, story[:20000]]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == real.encode(text, add_special_tokens=False).ids, text[:80]
        if 0 not in ids:  # the file's own <unk> is "normalized", which puts a space before it
            assert tokenizer.decode(ids) == real.decode(ids)
    keys["tokenizer.ggml.add_space_prefix"] = False
    bare, _ = rebuilt(keys)
    assert [step["type"] for step in bare["normalizer"]["normalizers"]] == ["Replace"]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "ab 123x", ["ab", "Ġ123", "x"]),
        ("smollm", "ab 123x", ["ab", "Ġ", "1", "2", "3", "x"]),
        ("default", "ab 1234", ["ab", "Ġ", "123", "4"]),
        ("qwen2", "ab 123x", ["ab", "Ġ", "1", "2", "3", "x"]),
        ("llama3", "ab 1234x", ["ab", "Ġ", "123", "4", "x"]),
        ("deepseek-coder", "ab 12,\ny", ["ab", "Ġ", "1", "2", ",", "Ċ", "y"]),
        ("deepseek-llm", "ab 12,\n\u10e7y", ["ab", "Ġ", "1", "2", ",", "Ċ", "áĥ§", "y"]),
    ],
)
def test_pre_tokenizers_split(pre: str, text: str, pieces: list[str]) -> None:
    _, tokenizer = rebuilt({**metadata("llama"), "tokenizer.ggml.pre": pre})
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


# ---------------------------------------------------------------- a real model


@pytest.fixture(scope="module")
def smollm_path() -> Path:
    return smollm2_path()


@pytest.fixture(scope="module")
def smollm(smollm_path: Path) -> Checkpoint:
    return open_checkpoint(str(smollm_path))


def test_real_config(smollm: Checkpoint) -> None:
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: smollm.config[key] for key in expected} == expected
    assert smollm.parameter_count == 134_515_008
    assert set(smollm.source.names()) == set(smollm.parameters)
    settings = json.loads(smollm.side_files["tokenizer_config.json"])
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["eos_token"] == "<|im_end|>"
    assert settings["unk_token"] == "<|endoftext|>"
    assert settings["add_bos_token"] is False
    assert settings["chat_template"].startswith("{% for message in messages %}")


def test_real_header_and_weights_as_gguf_reads_them(smollm: Checkpoint, smollm_path: Path) -> None:
    reader = gguf.GGUFReader(smollm_path)
    keys, tensors = read_header(smollm_path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys == {key: field.contents() for key, field in fields.items()}
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert [(t.name, t.offset, t.nbytes) for t in tensors.values()] == [
        (t.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    for ours, name, heads in (
        ("model.embed_tokens", "token_embd", 0),
        ("model.layers.29.mlp.down_proj", "blk.29.ffn_down", 0),
        ("model.layers.3.self_attn.q_proj", "blk.3.attn_q", 9),
        ("model.layers.3.self_attn.k_proj", "blk.3.attn_k", 3),
        ("model.norm", "output_norm", 0),
    ):
        tensor = theirs[f"{name}.weight"]
        full = gguf.quants.dequantize(tensor.data[:2000], tensor.tensor_type)
        if heads:
            pairs = full.reshape(heads, -1, 2, full.shape[1]).swapaxes(1, 2)
            full = pairs.reshape(full.shape)
        for start, stop in ((0, len(full)), (5, 6), (40, 170)):
            rows = smollm.rows(f"{ours}.weight", start, stop)
            np.testing.assert_array_equal(rows, full[start:stop], err_msg=ours)


def test_real_tokenizer(smollm: Checkpoint, smollm_path: Path) -> None:
    """transformers' reading of the same file, with the digit splitting that it drops put back."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(
        str(smollm_path.parent), gguf_file=smollm_path.name
    ).backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer = Tokenizer.from_str(smollm.side_files["tokenizer.json"].decode())
    for text in AWKWARD:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_real_prompts(smollm: Checkpoint) -> None:
    golden = json.loads(data_file("golden", "greedy_fp32.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(smollm.side_files["tokenizer.json"].decode())
    for case in golden["smollm2-135m-instruct"]:
        assert tokenizer.encode(case["prompt"], add_special_tokens=False).ids == case["ids"]


# ---------------------------------------------------------------- failures


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    whole = path.read_bytes()
    _, tensors = read_header(path)
    used = max(tensor.offset + tensor.nbytes for tensor in tensors.values())
    header = min(tensor.offset for tensor in tensors.values())
    for size in [*range(4, header, 97), header, used - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            open_gguf(path)
        assert str(path) in caught.value.message
        assert caught.value.hint


def test_huge_counts_end_at_once(tmp_path: Path) -> None:
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little")
    one_key = head + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
    endless = one_key + (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"\xff" * 7 + b"\0"
    path = tmp_path / "x.gguf"
    for data in (endless, one_key[:-9] + b"\xff" * 8):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"limit|bytes wanted"):
            open_gguf(path)


def test_wrong_magic(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGML" + b"\0" * 100)
    with pytest.raises(InputError, match="GGML"):
        open_gguf(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + b"\0" * 100)
    with pytest.raises(UnsupportedError, match="version 1"):
        open_gguf(path)


def test_unsupported_architecture_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "g.gguf", "gemma2", metadata("gemma2"), plain_tensors("llama"))
    with pytest.raises(UnsupportedError, match="gemma2"):
        open_gguf(path)


@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ],
)
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=key):
        open_gguf(tiny_file(tmp_path, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.rope.dimension_count", 32),
        ("llama.attention.value_length", 32),
        ("llama.logit_scale", 0.5),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.scale", 0.1),
        ("llama.attention.causal", False),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.some_setting_of_tomorrow", 2),
        ("general.type", "adapter"),
        ("tokenizer.ggml.model", "t5"),
        ("tokenizer.ggml.pre", "tekken"),
    ],
)
def test_unsupported_value_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{key} = {value}|{key} = '{value}'"):
        open_gguf(tiny_file(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.merges", ["a zz"]),
        ("tokenizer.ggml.token_type", [1]),
        ("tokenizer.ggml.tokens", ["a", *BYTE_TOKENS, "<s>"]),
        ("tokenizer.ggml.tokens", [str(number) for number in range(1000)]),
        ("tokenizer.ggml.eos_token_id", 10**6),
        ("general.alignment", 0),
    ],
)
def test_contradiction_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.ggml|general\.alignment"):
        open_gguf(tiny_file(tmp_path, **{key: value}))


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    extra = {**plain_tensors("llama"), "blk.0.attn_qkv.weight": (np.zeros((4, 4)), Kind.F32)}
    extra["blk.0.attn_qkv.weight"] = (np.zeros((4, 4), np.float32), Kind.F32)
    path = write_gguf(tmp_path / "e.gguf", "llama", metadata("llama"), extra)
    with pytest.raises(InputError, match="attn_qkv"):
        open_checkpoint(str(path))


def test_inspect_names_the_block_formats(tmp_path: Path) -> None:
    rows = {row.name: row.storage for row in describe(str(tiny_file(tmp_path))).tensors}
    assert rows["model.norm.weight"] == "F32"
    assert set(rows.values()) == {"F32"}


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A small file must not be able to pretend to a large model."""
    path = tiny_file(tmp_path)
    document = Document.read(path)
    first, second = document.tensors[:2]
    tensors = [first, replace(second, offset=first.offset), *document.tensors[2:]]
    path.write_bytes(replace(document, tensors=tensors).encode())
    with pytest.raises(InputError, match="overlaps another"):
        open_gguf(path)
