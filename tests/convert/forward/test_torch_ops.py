"""The torch interpreter against transformers, and against recorded tokens of real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from logits import largest_difference, mean_divergence, random_tokens
from places import SHARED_DATA, needs_shared_data, smollm2_path
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchModel
from dsconv.convert.open import open_checkpoint

TOLERANCE = 1e-4
LENGTH, VOCABULARY = 48, 160

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama one kv head, tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama all kv heads": ("llama", {"num_key_value_heads": 4}),
    "llama odd": (
        "llama",
        {"hidden_size": 100, "intermediate_size": 90, "num_attention_heads": 5, "head_dim": 20}
        | {"num_key_value_heads": 1},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3 biases": ("qwen3", {"attention_bias": True, "head_dim": 24}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, changes = CASES[request.param]
    return tiny_checkpoint(
        tmp_path_factory.mktemp("model"), family, seed=1, tokenizer=False, **changes
    )


def published(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def wanted_logits(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> Any:
    with torch.inference_mode():
        return published(folder, dtype)(torch.tensor([tokens])).logits[0].float().numpy()


def in_pieces(model: TorchModel, tokens: list[int], sizes: list[int]) -> Any:
    cache, pieces, start = KeyValueCache(), [], 0
    for size in sizes:
        pieces.append(model.forward(tokens[start : start + size], cache))
        start += size
    assert cache.length == start == len(tokens)
    return torch.cat(pieces)


@pytest.mark.parametrize("seed", [0, 1])
def test_full_chunked_and_single_steps(folder: Path, seed: int) -> None:
    tokens = random_tokens(LENGTH, VOCABULARY, seed)
    wanted = wanted_logits(folder, tokens)
    model = TorchModel.load(open_checkpoint(str(folder)))
    assert largest_difference(model.forward(tokens), wanted) <= TOLERANCE
    for sizes in ([20, 7, 21], [1] * LENGTH, [16, *[1] * 32], [47, 1]):
        assert largest_difference(in_pieces(model, tokens, sizes), wanted) <= TOLERANCE


def test_bfloat16_is_as_close_as_bfloat16_can_be(folder: Path) -> None:
    """As far from float32 as transformers is."""
    tokens = random_tokens(LENGTH, VOCABULARY, 2)
    exact, rounded = wanted_logits(folder, tokens), wanted_logits(folder, tokens, torch.bfloat16)
    checkpoint = open_checkpoint(str(folder))
    ours = TorchModel.load(checkpoint, "bfloat16").forward(tokens)
    assert ours.dtype == torch.bfloat16
    assert largest_difference(ours.float(), rounded) <= 0.02 * np.abs(exact).max()
    assert largest_difference(ours.float(), exact) > TOLERANCE  # it really is another precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_checkpoints_stored_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_checkpoint(tmp_path, "qwen2", seed=3, tokenizer=False)
    published(tmp_path, dtype).save_pretrained(tmp_path / "half")
    tokens = random_tokens(LENGTH, VOCABULARY)
    ours = TorchModel.load(open_checkpoint(str(tmp_path / "half"))).forward(tokens)
    assert largest_difference(ours, wanted_logits(tmp_path / "half", tokens)) <= TOLERANCE


# ---------------------------------------------------------------- recorded


def golden(name: str) -> list[dict[str, Any]]:
    entries = json.loads((SHARED_DATA / "golden" / "greedy_fp32.json").read_text())[name]
    assert entries
    return list(entries)


def greedy(model: TorchModel, prompt: list[int], count: int) -> tuple[torch.Tensor, list[int]]:
    """-> logits after the prompt, tokens."""
    cache = KeyValueCache()
    first = last = model.forward(prompt, cache)[-1]
    tokens = []
    for _ in range(count):
        tokens.append(int(last.argmax()))
        last = model.forward([tokens[-1]], cache)[-1]
    return first, tokens


@needs_shared_data
def test_recorded_tokens_of_tinystories() -> None:
    folder = SHARED_DATA / "models" / "tinystories-656k"
    model = TorchModel.load(open_checkpoint(str(folder)))
    for entry in golden("tinystories-656k"):
        last, tokens = greedy(model, entry["ids"], len(entry["greedy64"]))
        assert tokens == entry["greedy64"]
        top = torch.topk(last, 8)
        assert [str(int(i)) for i in top.indices] == list(entry["last_logits_top8"])
        wanted = list(entry["last_logits_top8"].values())
        assert largest_difference(top.values, wanted) <= TOLERANCE
        assert abs(float(last.mean()) - entry["logit_mean"]) <= TOLERANCE
        assert abs(float(last.std()) - entry["logit_std"]) <= 1e-3


class _RoundedToBfloat16:
    """The checkpoint with every matrix and vector rounded, as the recording had it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def rows(self, name: str, *bounds: int) -> Any:
        rows = self._checkpoint.rows(name, *bounds)
        return rows.astype(ml_dtypes.bfloat16).astype(np.float32)


@needs_shared_data
def test_recorded_tokens_of_smollm2() -> None:
    """Greedy text with the file's own weights; logits with them rounded as in the recording."""
    checkpoint = open_checkpoint(str(smollm2_path()))
    entries = golden("smollm2-135m-instruct")
    model = TorchModel.load(checkpoint)
    france = entries[0]
    exact, tokens = greedy(model, france["ids"], len(france["greedy64"]))
    assert tokens == france["greedy64"]
    rounded: Any = _RoundedToBfloat16(checkpoint)
    model = TorchModel.load(rounded)
    for entry in entries:
        last, tokens = greedy(model, entry["ids"], len(entry["greedy64"]))
        assert tokens == entry["greedy64"]
        top = torch.topk(last, 8)
        assert [str(int(i)) for i in top.indices] == list(entry["last_logits_top8"])
        assert largest_difference(top.values, list(entry["last_logits_top8"].values())) <= 1e-3
        if entry is france:
            assert mean_divergence(last[None].numpy(), exact[None].numpy()) < 0.01
