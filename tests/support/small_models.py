"""Small random checkpoints on disk, made from a seed, with a byte-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import parameters_of
from dsconv.convert.files.json_file import ConfigReader

BOS, EOS = 256, 257
VOCABULARY = 264  # six rows of padding, as real models have
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}assistant:"
)
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def small_config(**changes: Any) -> dict[str, Any]:
    """A two-layer Qwen2; a change to None leaves the key out."""
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "bfloat16",
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Every tensor that the config asks for, in its torch_dtype."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[config.get("torch_dtype", "bfloat16")]
    found = {}
    for parameter in parameters_of(read_family(ConfigReader(config, "config.json"))):
        values = rng.standard_normal(parameter.shape, np.float32)
        is_norm = parameter.name.endswith("norm.weight")
        found[parameter.name] = (1 + 0.1 * values if is_norm else 0.2 * values).astype(dtype)
    return found


@cache
def tokenizer_json() -> str:
    """A token per byte, `<s>` 256, `</s>` 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({mark: i for i, mark in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return str(tokenizer.to_str())


@cache
def gpt2_tokenizer_json() -> str:
    """GPT-2's way to split, which GGUF has a name for; two merges, BOS before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet[:-4], "th", "the"]  # 254 and two, so that the specials stay where they are
    merges = [("t", "h"), ("th", "e")]
    tokenizer = Tokenizer(models.BPE({mark: i for i, mark in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [f"<unused{number}>" for number in range(len(tokens), BOS)]
    tokenizer.add_special_tokens([AddedToken(mark) for mark in [*specials, "<s>", "</s>"]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return str(tokenizer.to_str())


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_side_files(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "add_bos_token": True,
            "chat_template": TEMPLATE,
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})


def write_checkpoint(folder: Path, seed: int = 0, shards: int = 1, **changes: Any) -> Path:
    """A checkpoint folder; `changes` are those of `small_config`."""
    config = small_config(**changes)
    return write_model(folder, config, random_tensors(config, seed), shards)


def gpt2_checkpoint(folder: Path, **changes: Any) -> Path:
    write_checkpoint(folder, **changes)
    (folder / "tokenizer.json").write_text(gpt2_tokenizer_json(), encoding="utf-8")
    return folder


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], shards: int = 1
) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_side_files(folder)
    write_shards(folder, tensors, shards)
    return folder


def write_shards(folder: Path, tensors: Mapping[str, NDArray[Any]], shards: int = 1) -> None:
    """One file, or several with an index (and the uneven number of zeros of some uploads)."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:06}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[index::shards]}
        save_file(part, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
