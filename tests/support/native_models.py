"""Small checkpoints for the tests of the native engine, with key biases as large as real ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from small_models import (
    LLAMA,
    LLAMA3,
    QWEN3,
    VOCABULARY,
    random_tensors,
    small_config,
    write_model,
)

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.native.export import export_native
from dsconv.convert.formats.native.file import NativeFile, open_native_file
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.quant.schemes import Floats

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
# Families, ways to share heads, sizes that are no multiple of a vector, tied or not.
CASES: Mapping[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 yarn": {"rope_scaling": YARN},
    "qwen2 one kv head": {"num_key_value_heads": 1},
    "llama": LLAMA,
    "llama biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama llama3": {**LLAMA, "rope_scaling": LLAMA3},
    "llama linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama all kv heads": {**LLAMA, "num_key_value_heads": 4},
    "llama odd": {
        **LLAMA,
        "hidden_size": 100,
        "intermediate_size": 90,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 20,
        "vocab_size": 270,
    },
    "qwen3": QWEN3,
    "qwen3 biases": {**QWEN3, "attention_bias": True, "head_dim": 24},
    "qwen3 tied": {**QWEN3, "tie_word_embeddings": True},
}


def native_checkpoint(
    folder: Path, seed: int = 0, dtype: str = "float16", bias: float = 150.0, **changes: Any
) -> Path:
    """A checkpoint whose key biases reach `bias` in some features, as Qwen2's do."""
    config = small_config(torch_dtype=dtype, **changes)
    tensors = random_tensors(config, seed)
    random = np.random.default_rng(seed + 1)
    for name, values in tensors.items():
        if name.endswith("k_proj.bias"):
            large = random.random(values.shape) < 0.2
            spread = np.where(large, bias * random.uniform(-1, 1, values.shape), values)
            tensors[name] = spread.astype(values.dtype)
    return write_model(folder, config, tensors)


def exported(checkpoint: Checkpoint | Path, output: Path) -> NativeFile:
    if isinstance(checkpoint, Path):
        checkpoint = open_checkpoint(str(checkpoint))
    export_native(checkpoint, output, threads=2)
    return open_native_file(output)


def reference_logits(checkpoint: Checkpoint | Path, tokens: list[int]) -> Floats:
    """Of the torch reference in float32, on the same dequantized weights."""
    if isinstance(checkpoint, Path):
        checkpoint = open_checkpoint(str(checkpoint))
    logits: Floats = TorchModel.load(checkpoint).forward(tokens).numpy()
    return logits


def some_tokens(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocabulary, count)]
