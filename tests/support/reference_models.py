"""Tiny random models of transformers, on which dsconv's own numbers are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(family: str, **config: Any) -> Any:
    """transformers' config of a tiny model; `config` overrides and extends SIZES."""
    heads = {"head_dim": 32} if family == "qwen3" else {}
    return FAMILIES[family][0](**{**SIZES, **heads, **config})


def tiny_model(family: str, seed: int = 0, **config: Any) -> Any:
    """A random float32 model of transformers with biases as large as real Qwen2 ones."""
    generator = torch.Generator().manual_seed(seed)
    model = FAMILIES[family][1](tiny_config(family, **config)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-150, 150, generator=generator)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
    return model


def tiny_checkpoint(
    folder: Path, family: str, seed: int = 0, *, tokenizer: bool = True, **config: Any
) -> Path:
    """Write a tiny checkpoint with a word-level tokenizer; the same bytes for the same arguments.

    The family's own biases are always there; give `attention_bias` or `mlp_bias` for others.
    """
    model = tiny_model(family, seed, **config)
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder, model.config.vocab_size)
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """tokenizer.json whose word `t7` is token 7; the first three are specials."""
    specials = ["<unk>", "<s>", "</s>"]
    words = [*specials, *(f"t{index}" for index in range(len(specials), vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
