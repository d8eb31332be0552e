"""Tiny models in GGUF, written by the gguf package, as a converter would write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

BYTE_TOKENS = [*map(chr, range(33, 127)), "Ġ", "ab"]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED, LAYERS = 256, 4, 2, 64, 256, 2


def metadata(arch: str, **changes: Any) -> dict[str, Any]:
    """What a converter writes for the tiny model; a change to None leaves the key out."""
    keys: dict[str, Any] = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": FEED,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*BYTE_TOKENS, "<s>", "</s>"],
        "tokenizer.ggml.token_type": [1] * len(BYTE_TOKENS) + [3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": len(BYTE_TOKENS),
        "tokenizer.ggml.eos_token_id": len(BYTE_TOKENS) + 1,
    }
    keys.update({key.replace("ARCH", arch): value for key, value in changes.items()})
    return {key: value for key, value in keys.items() if value is not None}


def checkpoint_tensors(arch: str) -> dict[str, NDArray[np.float32]]:
    """A random checkpoint in Hugging Face's names."""
    rng = np.random.default_rng(7)
    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (len(BYTE_TOKENS) + 2, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (len(BYTE_TOKENS) + 2, HIDDEN),
    }
    for index in range(LAYERS):
        prefix = f"model.layers.{index}"
        for name, rows, columns in (
            ("self_attn.q_proj", width, HIDDEN),
            ("self_attn.k_proj", kv_width, HIDDEN),
            ("self_attn.v_proj", kv_width, HIDDEN),
            ("self_attn.o_proj", HIDDEN, width),
            ("mlp.gate_proj", FEED, HIDDEN),
            ("mlp.up_proj", FEED, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED),
        ):
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            biased = name[10:] in ("q_proj", "k_proj", "v_proj") and arch == "qwen2"
            if biased or (arch == "llama" and name.startswith("self_attn")):
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (HIDDEN,)
        if arch == "qwen3":
            for name in ("q_norm", "k_norm"):
                shapes[f"{prefix}.self_attn.{name}.weight"] = (HEAD_DIM,)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def gguf_name(name: str) -> str:
    """gguf's own table of names: an independent twin of ours."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, LAYERS)
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return str(found)


def permuted(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The permutation of the Hugging Face -> GGUF conversion for `llama`, by reshaping."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return values
    heads = values.reshape(-1, 2, HEAD_DIM // 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def write_gguf(
    path: Path,
    arch: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, tuple[NDArray[Any], Kind]],
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_tensors(arch: str) -> dict[str, tuple[NDArray[Any], Kind]]:
    return {
        gguf_name(name): (permuted(name, values) if arch == "llama" else values, Kind.F32)
        for name, values in checkpoint_tensors(arch).items()
    }


def tiny_file(path: Path, arch: str = "llama", **changes: Any) -> Path:
    return write_gguf(path / "tiny.gguf", arch, metadata(arch, **changes), plain_tensors(arch))


def metadata_of(tokenizer: Mapping[str, Any], pre: str) -> dict[str, Any]:
    """What a converter would write for a byte-level tokenizer.json."""
    ids = dict(tokenizer["model"]["vocab"])
    types = dict.fromkeys(ids.values(), 1)
    for token in tokenizer["added_tokens"]:
        ids[token["content"]] = token["id"]
        types[token["id"]] = 3 if token["special"] else 4
    size = max(ids.values()) + 8  # padded, as the embedding is
    tokens = [f"[PAD{number}]" for number in range(size)]
    for token, number in ids.items():
        tokens[number] = token
    merges = tokenizer["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [types.get(number, 5) for number in range(size)],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
    }
